"""Metrics to Weights & Biases as well, where the user wants that and it can be had."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from merlina.schemas.events import LogLevel
from merlina.schemas.training import TrainingConfig
from merlina.training.reporter import Reporter
from merlina.worker.run.reporting import EventReporter

_DEFAULT_PROJECT = "merlina-training"


@contextmanager
def follow_with_wandb(config: TrainingConfig, job_id: str, reporter: EventReporter) -> Iterator[Reporter]:
    """The reporter, or one that also logs to W&B; whatever fails there is a warning, never the run's end."""
    if not config.use_wandb:
        yield reporter
        return
    if not os.environ.get("WANDB_API_KEY") or importlib.util.find_spec("wandb") is None:
        reporter.note("warning", "use_wandb: needs a wandb_key and the package wandb; the run goes on without it")
        yield reporter
        return
    run = _start(config, job_id, reporter)
    try:
        yield reporter if run is None else _Both(reporter, run)
    finally:
        if run is not None:
            _attempt(run.finish, reporter)


def _attempt(call: Callable[[], object], reporter: EventReporter) -> bool:
    """Whether it went well; where not, a warning says so and the run goes on."""
    try:
        call()
    except Exception as error:
        reporter.note("warning", f"use_wandb: {type(error).__name__} while sending; the run goes on without it")
        return False
    return True


def _start(config: TrainingConfig, job_id: str, reporter: EventReporter) -> Any:
    import wandb

    try:
        run = wandb.init(
            project=config.wandb_project or _DEFAULT_PROJECT,
            name=config.wandb_run_name or job_id,
            tags=config.wandb_tags,
            notes=config.wandb_notes,
            config=config.without_secrets().model_dump(mode="json"),
        )
    except Exception as error:
        reporter.note("warning", f"use_wandb: {type(error).__name__} while connecting; the run goes on without it")
        return None
    if run.url:
        reporter.link(run.url)
    return run


class _Both:
    """Events first, then W&B."""

    def __init__(self, reporter: EventReporter, run: Any) -> None:
        self._reporter = reporter
        self._run = run
        self._reachable = True

    def metrics(self, step: int, figures: dict[str, float], *, evaluation_follows: bool = False) -> None:
        self._reporter.metrics(step, figures, evaluation_follows=evaluation_follows)
        self._reachable = self._reachable and _attempt(lambda: self._run.log(figures, step=step), self._reporter)

    def progress(self, step: int, total_steps: int) -> None:
        self._reporter.progress(step, total_steps)

    def checkpoint(self, step: int, path: Path) -> None:
        self._reporter.checkpoint(step, path)

    def model_selected(self, step: int) -> None:
        self._reporter.model_selected(step)

    def note(self, level: LogLevel, message: str) -> None:
        self._reporter.note(level, message)

    def should_stop(self) -> bool:
        return self._reporter.should_stop()

    def is_pausing(self) -> bool:
        return self._reporter.is_pausing()
