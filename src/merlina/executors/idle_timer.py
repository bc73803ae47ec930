"""A timer that ends a process after a period without use."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any


class IdleTimer:
    """Calls `act` in a thread of its own once `seconds` have passed since `start`, unless it is cancelled before.

    The owner's lock must be held for all calls. `act` may run just after a cancel and must check whether it is still
    needed.
    """

    def __init__(self, seconds: float, act: Callable[..., None]) -> None:
        self.seconds = seconds
        self._act = act
        self._timer: threading.Timer | None = None

    def start(self, *arguments: Any) -> None:
        """Start or restart the timer; `arguments` are passed to `act`."""
        self.cancel()
        self._timer = threading.Timer(self.seconds, self._act, arguments)
        self._timer.daemon = True
        self._timer.start()

    def cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
