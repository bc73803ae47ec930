"""The progress of a job: a bar with loss, speed and remaining time on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterable

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from merlina.cli.console import duration
from merlina.schemas.messages import JobMessage, LogMessage, MetricsMessage, StatusUpdate

_LINE_SECONDS = 1.0
_LEVEL_STYLE = {"warning": "yellow", "error": "red", "info": "dim"}
_SHOWN_METRICS = (
    ("tokens_per_second", "{:,.0f} tokens/s"),
    ("loss", "loss {:.4f}"),
    ("eval_loss", "eval {:.4f}"),
)


def show_progress(messages: Iterable[JobMessage], console: Console) -> JobMessage | None:
    """Show a job's messages until the last one, which is returned; None if there were none."""
    view = _Bar(console) if console.is_terminal else _Lines(console)
    last = None
    with view:
        for message in messages:
            view.update(message)
            last = message
    return last


class _View:
    """The newest known values of a job, and how log lines and states are printed."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._state = ""
        self._step: int | None = None
        self._total_steps: int | None = None
        self._metrics: dict[str, float] = {}
        self._clock = _StepClock()

    def update(self, message: JobMessage) -> None:
        if isinstance(message, LogMessage):
            self._console.print(f"  [{_LEVEL_STYLE[message.level]}]{escape(message.message)}[/]")
        elif isinstance(message, MetricsMessage):
            self._merge(message.metrics)
        elif isinstance(message, StatusUpdate):
            self._merge({"loss": message.loss, "eval_loss": message.eval_loss})
            self._step = message.current_step if message.current_step is not None else self._step
            self._total_steps = message.total_steps if message.total_steps is not None else self._total_steps
            self._clock.note(message.current_step)
            self._show_state(message.status)
        self.refresh()

    def refresh(self) -> None:
        raise NotImplementedError

    def summary(self) -> str:
        """Return remaining time, speed and losses as far as they are known, the most important ones first."""
        left = self._clock.seconds_left(self._step, self._total_steps)
        parts = [f"{duration(left)} left"] if left is not None else []
        parts += [form.format(self._metrics[name]) for name, form in _SHOWN_METRICS if name in self._metrics]
        return " · ".join(parts)

    def _merge(self, metrics: dict[str, float | None]) -> None:
        self._metrics |= {name: value for name, value in metrics.items() if value is not None}

    def _show_state(self, state: str) -> None:
        if state == self._state or state in ("stopped", "cancelled"):
            return
        self._state = state
        if state == "paused":
            self._clock = _StepClock()
        self._console.print(f"[bold]{state.replace('_', ' ')}[/]")


class _Bar(_View):
    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._progress = Progress(
            # All values fit beside a bar of this width on a terminal of 80 columns.
            BarColumn(bar_width=12),
            MofNCompleteColumn(),
            TextColumn("{task.description}"),
            console=console,
        )
        self._task: TaskID | None = None

    def __enter__(self) -> None:
        self._progress.start()

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def refresh(self) -> None:
        if not self._total_steps:
            return
        if self._task is None:
            self._task = self._progress.add_task("", total=self._total_steps)
        self._progress.update(self._task, completed=self._step or 0, description=self.summary())


class _Lines(_View):
    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._printed_at = 0.0
        self._printed_step: int | None = None

    def __enter__(self) -> None:
        return

    def __exit__(self, *_: object) -> None:
        self._print()

    def refresh(self) -> None:
        if time.monotonic() - self._printed_at >= _LINE_SECONDS:
            self._print()

    def _print(self) -> None:
        if not self._step or self._step == self._printed_step:
            return
        self._printed_at, self._printed_step = time.monotonic(), self._step
        self._console.print(f"  step {self._step}/{self._total_steps} · {self.summary()}")


class _StepClock:
    """The mean duration of the steps observed so far."""

    def __init__(self) -> None:
        self._first: tuple[int, float] | None = None
        self._last: tuple[int, float] | None = None

    def note(self, step: int | None) -> None:
        if step is None or (self._last and self._last[0] == step):
            return
        self._last = (step, time.monotonic())
        self._first = self._first or self._last

    def seconds_left(self, step: int | None, total: int | None) -> float | None:
        if not step or not total or not self._first or not self._last or self._last[0] <= self._first[0]:
            return None
        per_step = (self._last[1] - self._first[1]) / (self._last[0] - self._first[0])
        return per_step * (total - step)
