"""`merlina bench`: measures the training speed of a configuration on this machine over its first steps."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from merlina.cli.check import ConfigFile
from merlina.cli.config_file import read_config_file
from merlina.cli.console import AsJson, print_table
from merlina.cli.serve import read_settings
from merlina.data.readers.sources import resolve_additional_files, resolve_file
from merlina.errors import TrainingError
from merlina.executors.local import LocalExecutor
from merlina.paths import AllowedPaths
from merlina.run_folder.event_log import read_events
from merlina.run_folder.folder import RunFolder
from merlina.run_folder.order import RunOrder
from merlina.schemas.events import Ended, Event, Metrics, Progress, Started
from merlina.schemas.training.config import TrainingConfig

_POLL_SECONDS = 0.1
# The first step fills caches and allocates memory; it is not counted.
_WARM_UP_STEPS = 1
_NOT_MEASURED: dict[str, Any] = {
    "eval_steps": 0.0, "save_steps": 0.0, "logging_steps": 1, "load_best_at_end": None, "early_stopping_patience": None,
    "push_to_hub": False, "use_wandb": False,
}  # fmt: skip


@dataclass(frozen=True)
class Measurement:
    """Medians over the counted steps; memory is that of the first process, in GiB."""

    seconds_to_first_step: float
    seconds_per_step: float
    tokens_per_second: float
    memory_gib: float
    gpu_memory_gib: float | None
    total_steps: int

    @property
    def hours(self) -> float:
        """Estimated hours for all steps of the run, without evaluations and checkpoints."""
        return self.total_steps * self.seconds_per_step / 3600


def bench(
    file: ConfigFile,
    steps: Annotated[
        int, typer.Option(min=1, help="Number of optimizer steps to measure, after one warm-up step.")
    ] = 5,
    as_json: AsJson = False,
) -> None:
    """Measure speed and memory of a run's first steps on this machine, without a server, and estimate its duration."""
    config = read_config_file(file)
    with tempfile.TemporaryDirectory(prefix="merlina-bench-") as folder:
        measured = _measure(config, Path(folder), steps)
    if as_json:
        typer.echo(json.dumps({**asdict(measured), "hours": measured.hours}, indent=2))
    else:
        print_table(_table(measured))


def _measure(config: TrainingConfig, folder: Path, steps: int) -> Measurement:
    settings = read_settings({})
    server_tokens = {"hf_token": settings.hf_token.get_secret_value()} if settings.hf_token else {}
    # The user of the command may read any file, and the addresses that the configuration names.
    parts = (*config.dataset.training_parts, *config.dataset.eval_parts)
    urls = [part.config.source.url for part in parts if part.config.source.url]
    allowed = AllowedPaths((Path("/"),), urls=settings.allowed_urls.with_hosts_of(urls))
    file = resolve_file(config.dataset.source, settings.uploads_dir, allowed)
    order = RunOrder(
        job_id="bench",
        attempt=1,
        config=config.without_secrets().model_copy(update=_NOT_MEASURED),
        dataset_file=str(file) if isinstance(file, Path) else None,
        source_files=resolve_additional_files(config.dataset, settings.uploads_dir, allowed),
        allowed_data_urls=allowed.urls.entries,
        output_dir=str(folder / "model"),
        trust_remote_code=settings.trust_remote_code,
        max_row_mb=settings.max_row_size_mb,
        num_ranks=max(1, len(config.gpu_ids or [])),
    )
    run = RunFolder(folder / "run")
    executor = LocalExecutor({**server_tokens, **config.secrets()}, spares=None)
    executor.launch(run, order, config.gpu_ids)
    try:
        return _watch(_events(run, executor), steps)
    finally:
        executor.kill(run)


def _watch(events: Iterator[Event], steps: int) -> Measurement:
    """Return the measurement of the first steps. Raises TrainingError if the run fails or has too few steps."""
    began, total_steps = 0.0, 0
    seen: list[Metrics] = []
    for event in events:
        if isinstance(event, Started):
            began = event.time
        elif isinstance(event, Progress):
            total_steps = event.total_steps
        elif isinstance(event, Ended) and event.error:
            raise TrainingError(event.error)
        elif isinstance(event, Metrics):
            seen.append(event)
            if len(seen) == _WARM_UP_STEPS + steps:
                break
    counted = seen[_WARM_UP_STEPS:]
    if not counted:
        raise TrainingError("The run ended before its second step; the first one is the warm-up")
    last = seen[-1].metrics
    return Measurement(
        seconds_to_first_step=seen[0].time - began,
        seconds_per_step=statistics.median(after.time - before.time for before, after in pairwise(seen)),
        tokens_per_second=statistics.median(event.metrics["tokens_per_second"] or 0.0 for event in counted),
        memory_gib=last["memory_gib"] or 0.0,
        gpu_memory_gib=last.get("gpu_memory"),
        total_steps=total_steps,
    )


def _events(run: RunFolder, executor: LocalExecutor) -> Iterator[Event]:
    """Yield the run's events up to its last one. Raises TrainingError if the worker died without it."""
    offset = 0
    while True:
        alive = executor.is_alive(run)
        found, offset = read_events(run.events_file, offset) if run.events_file.exists() else ([], 0)
        yield from found
        if any(isinstance(event, Ended) for event in found):
            return
        if not alive and not found:
            raise TrainingError(f"The worker process {executor.cause_of_death(run)}")
        time.sleep(_POLL_SECONDS)


def _table(measured: Measurement) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    rows = [
        ("time to first step", f"{measured.seconds_to_first_step:.1f} s"),
        ("time per step", f"{measured.seconds_per_step:.2f} s"),
        ("speed", f"{measured.tokens_per_second:,.0f} tokens/s"),
        ("memory", f"{measured.memory_gib:.1f} GiB"),
        ("full run", f"{measured.total_steps:,} steps, about {measured.hours:.1f} h"),
    ]
    if measured.gpu_memory_gib is not None:
        rows.insert(4, ("GPU memory", f"{measured.gpu_memory_gib:.1f} GiB"))
    for name, value in rows:
        table.add_row(name, value)
    return table
