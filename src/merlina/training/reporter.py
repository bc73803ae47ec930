"""The interface through which a training run reports, and learns that it should stop."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from merlina.schemas.events import LogLevel


class StoppedEarly(Exception):  # noqa: N818
    """A stop or pause was requested before the first step. (`EarlyStopping` ends a run by its evaluations.)"""


class Reporter(Protocol):
    """Receives the progress of a training run, and returns whether a stop or pause is requested."""

    def progress(self, step: int, total_steps: int) -> None:
        """Report a finished optimizer step."""

    def metrics(self, step: int, metrics: dict[str, float], *, awaits_evaluation: bool = False) -> None:
        """Report the metrics of a step, or of an evaluation after it (names begin with `eval_`).

        `awaits_evaluation` announces that an evaluation of the same step will be reported.
        """

    def checkpoint(self, step: int, path: Path) -> None:
        """Report a checkpoint that is complete on disk."""

    def model_selected(self, step: int) -> None:
        """Report the step of the weights that will be saved: the last step, or the one with the best evaluation."""

    def note(self, level: LogLevel, message: str) -> None:
        """Report something that the user should know."""

    def should_stop(self) -> bool:
        """Return whether a stop or pause is requested.

        Called after each step, between the batches of an evaluation, and while rows are read and the reference is
        computed.
        """

    def is_pausing(self) -> bool:
        """Return whether the requested stop is a pause, after which the run resumes where it stopped."""
