"""The training's figures and notes as events of the run."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Protocol

from merlina.domain.job_states import JobState
from merlina.faults import FaultPoint, reach
from merlina.runs import read_events
from merlina.schemas.events import (
    Checkpointed,
    Ended,
    KnownEvent,
    Linked,
    Logged,
    LogLevel,
    Metrics,
    Moved,
    Paused,
    Placed,
    Placing,
    Progress,
    Resumed,
    StateChanged,
)
from merlina.worker.run.saved_model_metrics import SavedModelFigures

_PROGRESS_SECONDS = 0.1


_TOKEN_VARIABLES = ("HF_TOKEN", "WANDB_API_KEY")


def without_tokens(text: str) -> str:
    """Other people's words with this run's tokens taken out, wherever a library may have put them."""
    for token in filter(None, map(os.environ.get, _TOKEN_VARIABLES)):
        text = text.replace(token, "[token]")
    return text


class Log(Protocol):
    """Where events are written."""

    def append(self, event: KnownEvent) -> int: ...


class Wish(Protocol):
    """Whether the run is to end, and if so why."""

    def is_set(self) -> bool: ...

    def reason_to_pause(self) -> str | None: ...


class Silence:
    """Log and wish of a rank that has nothing to say."""

    def append(self, event: KnownEvent) -> int:  # noqa: ARG002
        return 0

    def is_set(self) -> bool:
        return False

    def reason_to_pause(self) -> str | None:
        return None


class EventReporter:
    """A training Reporter that writes to the event log; also the stages' own voice."""

    def __init__(self, log: Log, stop: Wish) -> None:
        self._log = log
        self._stop = stop
        self._progress_at = 0.0
        self._untold_progress: tuple[int, int] | None = None
        self._saved = SavedModelFigures()
        self._awaiting: tuple[int, dict[str, float]] | None = None
        # What an earlier attempt measured at the step that this one continues after; empty if it did not evaluate it.
        self.recalled_evaluation: dict[str, float] = {}
        # Where this attempt has put the model.
        self.model_folder: Path | None = None

    def recall(self, events_file: Path, until_step: int) -> None:
        """Take over the figures of earlier attempts up to a step, so that the final ones are those of the whole run."""
        offset = 0
        while True:
            found, offset = read_events(events_file, offset)
            if not found:
                return
            for event in found:
                if isinstance(event, Resumed):
                    self._saved.forget_after(event.step)
                    if event.step < until_step:
                        self.recalled_evaluation = {}
                elif isinstance(event, Metrics) and event.step <= until_step:
                    figures = {name: value for name, value in event.metrics.items() if value is not None}
                    self._saved.add(event.step, figures)
                    if event.step == until_step and any(name.startswith("eval_") for name in figures):
                        self.recalled_evaluation = figures

    def state(self, state: JobState, output_dir: str | None = None) -> None:
        self._tell_progress()
        self._log.append(StateChanged(state=state, output_dir=output_dir))

    def resumed(self, step: int, announced_step: int | None = None, reason: str | None = None) -> None:
        self._log.append(Resumed(step=step, announced_step=announced_step, reason=reason))

    def progress(self, step: int, total_steps: int) -> None:
        self._complete_metrics()
        now = time.monotonic()
        if now - self._progress_at >= _PROGRESS_SECONDS or step in (0, total_steps):
            self._progress_at = now
            self._untold_progress = None
            self._log.append(Progress(step=step, total_steps=total_steps))
        else:
            self._untold_progress = step, total_steps

    def metrics(self, step: int, figures: dict[str, float], *, evaluation_follows: bool = False) -> None:
        """One step's figures; those that an evaluation follows are written at once, and again with its figures."""
        self._saved.add(step, figures)
        if self._awaiting is not None and self._awaiting[0] == step:
            figures = {**self._awaiting[1], **figures}
            self._awaiting = None
        self._complete_metrics()
        if evaluation_follows:
            self._awaiting = step, figures
        self._log.append(Metrics(step=step, metrics=dict(figures), awaits_evaluation=evaluation_follows))

    def checkpoint(self, step: int, path: Path) -> None:
        self._tell_progress()
        self._log.append(Checkpointed(step=step, path=str(path)))

    def model_selected(self, step: int) -> None:
        self._saved.step = step

    def note(self, level: LogLevel, message: str) -> None:
        self._log.append(Logged(level=level, message=without_tokens(message)))

    def moved(self, folder: Path, kept_as: Path) -> None:
        self._log.append(Moved(folder=str(folder), kept_as=str(kept_as)))

    def placing(self, placing: Placing) -> None:
        """Announce the renames that will move a finished model into its output folder."""
        self._log.append(placing)

    def placed(self, folder: Path) -> None:
        self.model_folder = folder
        self._log.append(Placed(folder=str(folder)))
        reach(FaultPoint.END_PLACED_REPORTED)

    def link(self, wandb_url: str) -> None:
        self._log.append(Linked(wandb_url=wandb_url))

    def end(self, ended: Ended) -> None:
        self._tell_progress()
        self._log.append(ended.model_copy(update={"error": without_tokens(ended.error) if ended.error else None}))

    def paused(self, reason: str, checkpoint_step: int | None) -> None:
        self._tell_progress()
        where = f"continues from the checkpoint at step {checkpoint_step}" if checkpoint_step else "starts at step 1"
        self.note("info", f"Paused: {reason}. A resume {where}")
        reach(FaultPoint.PAUSE_SAVED)
        self._log.append(Paused(reason=reason, checkpoint_step=checkpoint_step))
        reach(FaultPoint.PAUSE_REPORTED)

    def reason_to_pause(self) -> str | None:
        return self._stop.reason_to_pause()

    def is_pausing(self) -> bool:
        return self.reason_to_pause() is not None

    def should_stop(self) -> bool:
        return self._stop.is_set()

    def _complete_metrics(self) -> None:
        """Write the figures of a step again whose evaluation was given up."""
        if self._awaiting is not None:
            step, figures = self._awaiting
            self._awaiting = None
            self._log.append(Metrics(step=step, metrics=dict(figures)))

    def _tell_progress(self) -> None:
        """The last progress, where it came too soon after another to be told at once."""
        self._complete_metrics()
        if self._untold_progress is not None:
            step, total_steps = self._untold_progress
            self._untold_progress = None
            self._log.append(Progress(step=step, total_steps=total_steps))

    def final_metrics(self) -> dict[str, float]:
        """See SavedModelFigures."""
        return self._saved.final_metrics()
