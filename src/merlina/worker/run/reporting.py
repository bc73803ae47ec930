"""The reporter of a run, which writes metrics, progress and notes as events to the event log."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Protocol

from merlina.domain.job_states import JobState
from merlina.faults import FaultPoint, reach
from merlina.run_folder.event_log import read_events
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
from merlina.worker.run.finished_model.saved_model_metrics import SavedModelMetrics

_PROGRESS_SECONDS = 0.1


_TOKEN_VARIABLES = ("HF_TOKEN", "WANDB_API_KEY")


def redact_tokens(text: str) -> str:
    """Return the text of a library's error or traceback without this run's tokens."""
    for token in filter(None, map(os.environ.get, _TOKEN_VARIABLES)):
        text = text.replace(token, "[token]")
    return text


class Log(Protocol):
    """A destination of events."""

    def append(self, event: KnownEvent) -> int: ...


class Requests(Protocol):
    """Requests to stop or to pause the run."""

    def is_set(self) -> bool:
        """Return whether a stop or pause is requested."""

    def reason_to_pause(self) -> str | None:
        """Return the reason of a pause; None if none is requested, or a stop is."""


class NullChannel:
    """Log and requests of the ranks other than the first, which report nothing and receive no requests."""

    def append(self, event: KnownEvent) -> int:  # noqa: ARG002
        return 0

    def is_set(self) -> bool:
        return False

    def reason_to_pause(self) -> str | None:
        return None


class EventReporter:
    """A training Reporter that writes to the event log. The stages of the run report through it, too."""

    def __init__(self, log: Log, requests: Requests) -> None:
        self._log = log
        self._requests = requests
        self._progress_time = 0.0
        self._pending_progress: tuple[int, int] | None = None
        self._saved = SavedModelMetrics()
        self._awaiting: tuple[int, dict[str, float]] | None = None
        # The evaluation that an earlier attempt made at the step after which this attempt continues; empty without one.
        self.recalled_evaluation: dict[str, float] = {}
        # The folder in which this attempt has placed the model.
        self.model_folder: Path | None = None

    def recall(self, events_file: Path, until_step: int) -> None:
        """Read the metrics of earlier attempts up to a step, so that the final metrics are those of the whole run."""
        offset = 0
        while True:
            found, offset = read_events(events_file, offset)
            if not found:
                return
            for event in found:
                if isinstance(event, Resumed):
                    self._saved.discard_after(event.step)
                    if event.step < until_step:
                        self.recalled_evaluation = {}
                elif isinstance(event, Metrics) and event.step <= until_step:
                    metrics = {name: value for name, value in event.metrics.items() if value is not None}
                    self._saved.add(event.step, metrics)
                    if event.step == until_step and any(name.startswith("eval_") for name in metrics):
                        self.recalled_evaluation = metrics

    def state(self, state: JobState, output_dir: str | None = None) -> None:
        """Report the state that the job enters."""
        self._flush()
        self._log.append(StateChanged(state=state, output_dir=output_dir))

    def resumed(self, step: int, announced_step: int | None = None, reason: str | None = None) -> None:
        """Report the step after which the attempt continues, and why if another one was announced."""
        self._log.append(Resumed(step=step, announced_step=announced_step, reason=reason))

    def progress(self, step: int, total_steps: int) -> None:
        self._complete_metrics()
        now = time.monotonic()
        if now - self._progress_time >= _PROGRESS_SECONDS or step in (0, total_steps):
            self._progress_time = now
            self._pending_progress = None
            self._log.append(Progress(step=step, total_steps=total_steps))
        else:
            self._pending_progress = step, total_steps

    def metrics(self, step: int, metrics: dict[str, float], *, awaits_evaluation: bool = False) -> None:
        """Write a step's metrics; if an evaluation follows, its metrics are written later together with these."""
        self._saved.add(step, metrics)
        if self._awaiting is not None and self._awaiting[0] == step:
            metrics = {**self._awaiting[1], **metrics}
            self._awaiting = None
        self._complete_metrics()
        if awaits_evaluation:
            self._awaiting = step, metrics
        self._log.append(Metrics(step=step, metrics=dict(metrics), awaits_evaluation=awaits_evaluation))

    def checkpoint(self, step: int, path: Path) -> None:
        self._flush()
        self._log.append(Checkpointed(step=step, path=str(path)))

    def model_selected(self, step: int) -> None:
        self._saved.step = step

    def note(self, level: LogLevel, message: str) -> None:
        self._log.append(Logged(level=level, message=redact_tokens(message)))

    def moved(self, folder: Path, kept_as: Path) -> None:
        """Report that the older model in the output folder was renamed."""
        self._log.append(Moved(folder=str(folder), kept_as=str(kept_as)))

    def placing(self, placing: Placing) -> None:
        """Announce the renames that will move a finished model into its output folder."""
        self._log.append(placing)

    def placed(self, folder: Path) -> None:
        """Report the folder in which the finished model is now."""
        self.model_folder = folder
        self._log.append(Placed(folder=str(folder)))
        reach(FaultPoint.END_PLACED_REPORTED)

    def link(self, wandb_url: str) -> None:
        """Report where W&B shows the run."""
        self._log.append(Linked(wandb_url=wandb_url))

    def end(self, ended: Ended) -> None:
        """Write the last event of the run, without tokens."""
        self._flush()
        self._log.append(ended.model_copy(update={"error": redact_tokens(ended.error) if ended.error else None}))

    def paused(self, reason: str, checkpoint_step: int | None) -> None:
        """Write the last event of an attempt that was paused."""
        self._flush()
        start = f"continues from the checkpoint at step {checkpoint_step}" if checkpoint_step else "starts at step 1"
        self.note("info", f"Paused: {reason}. A resume {start}")
        reach(FaultPoint.PAUSE_SAVED)
        self._log.append(Paused(reason=reason, checkpoint_step=checkpoint_step))
        reach(FaultPoint.PAUSE_REPORTED)

    def reason_to_pause(self) -> str | None:
        return self._requests.reason_to_pause()

    def is_pausing(self) -> bool:
        return self.reason_to_pause() is not None

    def should_stop(self) -> bool:
        return self._requests.is_set()

    def _complete_metrics(self) -> None:
        """Write the metrics of a step again if its evaluation was announced but abandoned."""
        if self._awaiting is not None:
            step, metrics = self._awaiting
            self._awaiting = None
            self._log.append(Metrics(step=step, metrics=dict(metrics)))

    def _flush(self) -> None:
        """Write what is withheld: metrics that await an evaluation, and progress that followed another too closely."""
        self._complete_metrics()
        if self._pending_progress is not None:
            step, total_steps = self._pending_progress
            self._pending_progress = None
            self._log.append(Progress(step=step, total_steps=total_steps))

    def final_metrics(self) -> dict[str, float]:
        """Return the metrics of the saved model; see SavedModelMetrics."""
        return self._saved.final_metrics()
