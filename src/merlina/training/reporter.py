"""Whom a training speaks to."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from merlina.schemas.events import LogLevel


class StoppedEarly(Exception):  # noqa: N818
    """A stop was asked for before training began."""


class Reporter(Protocol):
    """Who is told how the training goes, and says when it should end."""

    def progress(self, step: int, total_steps: int) -> None:
        """An optimizer step was finished."""

    def metrics(self, step: int, metrics: dict[str, float], *, evaluation_follows: bool = False) -> None:
        """The metrics of a step, or of an evaluation after it (`eval_…`), which `evaluation_follows` announces."""

    def checkpoint(self, step: int, path: Path) -> None:
        """A checkpoint is complete on the disk."""

    def model_selected(self, step: int) -> None:
        """The weights after this step, the last or the best one, are those that will be saved."""

    def note(self, level: LogLevel, message: str) -> None:
        """Something people should know; `level` is info or warning."""

    def should_stop(self) -> bool:
        """Asked after each optimizer step, and between the passes before the first one."""

    def is_pausing(self) -> bool:
        """Whether it should stop only to go on later just where it was."""
