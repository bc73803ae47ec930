"""A process that nobody needs is let go after a while."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any


class IdleTimer:
    """Calls `act` in a thread of its own once `seconds` have passed since `start`, unless it is cancelled before.

    Its owner's lock guards it. A call may come although the timer was cancelled a moment ago: `act` looks for itself
    whether anyone came first.
    """

    def __init__(self, seconds: float, act: Callable[..., None]) -> None:
        self.seconds = seconds
        self._act = act
        self._timer: threading.Timer | None = None

    def start(self, *arguments: Any) -> None:
        """From now on; `arguments` are handed to `act`."""
        self.cancel()
        self._timer = threading.Timer(self.seconds, self._act, arguments)
        self._timer.daemon = True
        self._timer.start()

    def cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
