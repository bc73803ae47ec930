"""The stages of a run in order, and the one place where whatever goes wrong becomes the run's last event."""

from __future__ import annotations

import shutil
import sys
import traceback
from pathlib import Path

from merlina.errors import MerlinaError, ModelError
from merlina.runs import EventLog, RunFolder, RunOrder
from merlina.training.reporter import StoppedEarly
from merlina.worker.publishing import publish
from merlina.worker.reporting import EventReporter, without_tokens
from merlina.worker.saving import save_model
from merlina.worker.shortages import disk_is_full, memory_short_of
from merlina.worker.stages import Stages
from merlina.worker.stop import StopRequest

_FAILED = 1


def run(folder: RunFolder, order: RunOrder, log: EventLog, stop: StopRequest) -> int:
    """Runs an order to its end and returns the process's exit code. The log's last line says how it went."""
    reporter = EventReporter(log, stop)
    folder.reserve()
    try:
        run_stages(Stages(folder, order, reporter))
    except Exception as error:
        folder.reserve_file.unlink(missing_ok=True)
        reporter.end("failed", error=in_words(error, folder))
        sys.stderr.write(without_tokens(traceback.format_exc()))
        return _FAILED
    folder.reserve_file.unlink(missing_ok=True)
    return 0


def run_stages(stages: Stages) -> None:
    """To the run's last event, unless something goes wrong; of several ranks, all but the first end without one."""
    try:
        _run_stages(stages)
    except StoppedEarly:
        reporter = stages.reporter
        reason = reporter.reason_to_pause()
        if reason is not None:
            reporter.paused(reason)
        else:
            reporter.note("info", "Stopped before training began; there is nothing to save")
            reporter.end("stopped")


def _run_stages(stages: Stages) -> None:
    order, folder, reporter = stages.order, stages.folder, stages.reporter
    reporter.state("loading_model")
    loaded = stages.load_model()
    reporter.state("loading_dataset")
    data = stages.load_data(loaded)
    reporter.state("training")
    trained = stages.train(loaded, data)
    if not stages.ranks.is_first:
        return
    if stages.was_stopped and (reason := reporter.reason_to_pause()) is not None:
        reporter.paused(reason)
        return
    reporter.state("saving")
    final_metrics = reporter.final_metrics()
    output_dir = Path(order.output_dir)
    save_model(trained, loaded.tokenizer, order, data, final_metrics, reporter)
    if stages.was_stopped:
        reporter.end("stopped", output_dir=str(output_dir), final_metrics=final_metrics)
        return
    if order.config.push_to_hub:
        reporter.state("uploading", output_dir=str(output_dir))
        publish(trained, loaded.tokenizer, order, data, final_metrics, reporter, folder.checkpoints_dir)
    shutil.rmtree(folder.checkpoints_dir, ignore_errors=True)
    reporter.end("completed", output_dir=str(output_dir), final_metrics=final_metrics)


def in_words(error: Exception, folder: RunFolder) -> str:
    """What happened and what to do about it."""
    cause = _behind_words_about_the_model(error)
    place = memory_short_of(cause)
    if place is not None:
        return (
            f"The run needs more {place} than there is. In order of effect: use_4bit, gradient_checkpointing, "
            "a smaller max_length, an 8bit optimizer_type, a smaller lora_r"
        )
    if disk_is_full(cause):
        written = "the model's files" if cause is not error else getattr(error, "filename", None) or folder.path
        return f"The disk is full: no room to write {written}. Free some space, then resume or retry"
    if isinstance(error, MerlinaError):
        return error.message
    if isinstance(error, PermissionError):
        return f"{error.filename} can't be written to: {error.strerror}"
    first_line = next(iter(str(error).strip().splitlines()), "no message")
    return f"Unexpected {type(error).__name__}: {first_line}. The traceback is in {folder.log_file}"


def _behind_words_about_the_model(error: Exception) -> BaseException:
    """What was raised while a model was loaded: its files are not at fault where it was disk or memory."""
    return error.__cause__ or error if isinstance(error, ModelError) else error
