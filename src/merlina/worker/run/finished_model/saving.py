"""Saving of the finished model: written to a temporary folder, which is then renamed to the output folder."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from torch import nn

from merlina.checkpoints import sync
from merlina.errors import DiskFullError, TrainingError
from merlina.faults import FaultPoint, reach
from merlina.model_placement import identity, place
from merlina.run_folder.order import RunOrder
from merlina.schemas.events import Placing
from merlina.worker.encoding import PairEncoder
from merlina.worker.resource_errors import disk_is_full
from merlina.worker.run.data_loading import TrainingData
from merlina.worker.run.finished_model.generation_config import write_generation_config
from merlina.worker.run.finished_model.loading_code import compute_dtype_name, location_of_run
from merlina.worker.run.finished_model.model_card import model_card, run_metrics_table
from merlina.worker.run.reporting import EventReporter
from merlina.worker.templates import saved_template

CONFIG_FILE = "merlina.json"


def save_model(
    model: nn.Module,
    tokenizer: Any,
    order: RunOrder,
    data: TrainingData,
    final_metrics: dict[str, float],
    reporter: EventReporter,
    step: int,
    *,
    was_stopped: bool,
) -> None:
    """Save weights, tokenizer, configuration and model card in `order.output_dir`; training ended after `step`.

    An older model there is moved to `<name>.before-<job id>`, which an event records. Raises TrainingError if another
    model was put there meanwhile, and DiskFullError.
    """
    target = Path(order.output_dir)
    target.parent.mkdir(parents=True, exist_ok=True)
    staged = target.with_name(f".{target.name}.{order.job_id}.partial")
    shutil.rmtree(staged, ignore_errors=True)
    try:
        location = location_of_run(order.config, order.output_dir)
        metrics = run_metrics_table(final_metrics, data, location, compute_dtype_name(order.config))
        _write(staged, model, tokenizer, order, model_card(order, data, metrics, location))
        _sync_all(staged)
        reach(FaultPoint.END_MODEL_WRITTEN)
        kept_as = (
            _free_name(target.with_name(f"{target.name}.before-{order.job_id}")) if os.path.lexists(target) else None
        )
        placing = Placing(
            folder=str(target),
            staged=str(staged),
            identity=str(identity(staged)),
            kept_as=str(kept_as) if kept_as else None,
            step=step,
            final_metrics=None if was_stopped else dict(final_metrics),
        )
        reporter.placing(placing)
        reach(FaultPoint.END_PLACING)
        if not place(placing, reporter):
            raise TrainingError(
                f"Another model was put into {target} while this one was being saved; resume to try again"
            )
    except Exception as error:
        if disk_is_full(error):
            raise DiskFullError(
                f"The disk is full: the model could not be saved in {target}. Free some space, then resume"
            ) from error
        raise
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    if kept_as is not None:
        reporter.note("warning", f"{target} already existed; it was moved to {kept_as}")
    reporter.note("info", f"The model is in {target}")


def _write(folder: Path, model: Any, tokenizer: Any, order: RunOrder, card: str) -> None:
    folder.mkdir(mode=0o755)
    model.save_pretrained(folder)
    config = order.config
    end_token = PairEncoder.for_run(tokenizer, config).end_token
    write_generation_config(folder, model, tokenizer.eos_token_id, end_token)
    tokenizer.chat_template = saved_template(tokenizer, config.dataset.format)
    tokenizer.save_pretrained(folder)
    (folder / CONFIG_FILE).write_text(config.without_secrets().model_dump_json(indent=2) + "\n")
    (folder / "README.md").write_text(card)
    # Files of a run are private to its owner; a finished model is readable to all users of the models folder.
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)


def _free_name(path: Path) -> Path:
    number = 1
    candidate = path
    while os.path.lexists(candidate):
        number += 1
        candidate = path.with_name(f"{path.name}-{number}")
    return candidate


def _sync_all(folder: Path) -> None:
    for path in folder.rglob("*"):
        sync(path)
    sync(folder)
