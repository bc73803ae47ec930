"""Logging of metrics to Weights & Biases in addition to the event log."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from merlina.schemas.events import LogLevel
from merlina.schemas.training.config import TrainingConfig
from merlina.training.reporter import Reporter
from merlina.worker.run.reporting import EventReporter

_DEFAULT_PROJECT = "merlina-training"


@contextmanager
def with_wandb(config: TrainingConfig, job_id: str, reporter: EventReporter) -> Iterator[Reporter]:
    """Yield a reporter that also logs to W&B if configured. Failures of W&B are warnings and never end the run."""
    if not config.use_wandb:
        yield reporter
        return
    if not os.environ.get("WANDB_API_KEY") or importlib.util.find_spec("wandb") is None:
        reporter.note("warning", "use_wandb: it needs a wandb_key and the package wandb; the run continues without it")
        yield reporter
        return
    run = _start(config, job_id, reporter)
    try:
        yield reporter if run is None else _WandbReporter(reporter, run)
    finally:
        if run is not None:
            _try(run.finish, reporter)


def _try(call: Callable[[], object], reporter: EventReporter) -> bool:
    """Call and return whether it succeeded; a failure is reported as a warning."""
    try:
        call()
    except Exception as error:
        reporter.note("warning", f"use_wandb: {type(error).__name__} while sending; the run continues without it")
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
        reporter.note("warning", f"use_wandb: {type(error).__name__} while connecting; the run continues without it")
        return None
    if run.url:
        reporter.link(run.url)
    return run


class _WandbReporter:
    """A training Reporter that writes events first, then logs metrics to W&B."""

    def __init__(self, reporter: EventReporter, run: Any) -> None:
        self._reporter = reporter
        self._run = run
        self._is_reachable = True

    def metrics(self, step: int, metrics: dict[str, float], *, awaits_evaluation: bool = False) -> None:
        self._reporter.metrics(step, metrics, awaits_evaluation=awaits_evaluation)
        self._is_reachable = self._is_reachable and _try(lambda: self._run.log(metrics, step=step), self._reporter)

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
