"""A job as it goes: a bar with loss, speed and time left, or plain lines where there is no terminal."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from merlina.cli.console import duration

Message = dict[str, Any]

_LINE_SECONDS = 1.0
_LEVEL_STYLE = {"warning": "yellow", "error": "red", "info": "dim"}


def show_progress(messages: Iterable[Message], console: Console) -> Message:
    """Shows a job's messages until the last, which it returns."""
    shown = _Bar(console) if console.is_terminal else _Lines(console)
    last: Message = {}
    with shown:
        for message in messages:
            shown.take(message)
            last = message
    return last


class _View:
    """What is known of the job by now, and how lines about it are written."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._status = ""
        self._known: Message = {}
        self._clock = _StepClock()

    def take(self, message: Message) -> None:
        if message["type"] == "log":
            self._console.print(f"  [{_LEVEL_STYLE[message['level']]}]{escape(message['message'])}[/]")
        elif message["type"] == "metrics":
            self._known |= {name: value for name, value in message["metrics"].items() if value is not None}
        elif message["type"] == "status_update":
            self._known |= {name: value for name, value in message.items() if value is not None}
            self._clock.note(message.get("current_step"))
            if message["status"] != self._status and message["status"] not in ("stopped", "cancelled"):
                self._status = message["status"]
                if self._status == "paused":
                    self._clock = _StepClock()
                self._console.print(f"[bold]{self._status.replace('_', ' ')}[/]")
        self.refresh()

    def refresh(self) -> None:
        raise NotImplementedError

    def figures(self) -> str:
        """Time left, speed and losses, as far as they are known; a narrow terminal cuts off the last ones."""
        known = self._known
        left = self._clock.seconds_left(known.get("current_step"), known.get("total_steps"))
        parts = [f"{duration(left)} left"] if left is not None else []
        parts += [f"{known['tokens_per_second']:,.0f} tokens/s"] if "tokens_per_second" in known else []
        parts += [f"loss {known['loss']:.4f}"] if "loss" in known else []
        parts += [f"eval {known['eval_loss']:.4f}"] if "eval_loss" in known else []
        return " · ".join(parts)


class _Bar(_View):
    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._progress = Progress(
            # Leaves room for all figures where the terminal is 80 columns wide.
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
        total = self._known.get("total_steps")
        if not total:
            return
        if self._task is None:
            self._task = self._progress.add_task("", total=total)
        step = self._known.get("current_step") or 0
        self._progress.update(self._task, completed=step, description=self.figures())


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
        step, total = self._known.get("current_step"), self._known.get("total_steps")
        if not step or step == self._printed_step:
            return
        self._printed_at, self._printed_step = time.monotonic(), step
        self._console.print(f"  step {step}/{total} · {self.figures()}")


class _StepClock:
    """How long a step takes, from the steps seen since the watching began."""

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
