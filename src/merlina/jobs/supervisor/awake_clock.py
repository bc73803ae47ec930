"""A clock that measures how long this process has been awake, for the grace periods of runs."""

from __future__ import annotations

import time
from collections.abc import Callable

# A longer gap between two ticks means that this process was suspended, and most likely its workers as well.
_MAX_GAP_SECONDS = 5.0


class AwakeClock:
    """Counts seconds between calls of `tick` by the monotonic clock; a suspension counts at most five seconds.

    After a laptop wakes up or a container is thawed, a run has the remaining time; after a restart of the server it has
    all of it again. Setting the system clock has no effect.
    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.seconds = 0.0
        self._monotonic = monotonic
        self._last = monotonic()

    def tick(self) -> None:
        now = self._monotonic()
        self.seconds += min(now - self._last, _MAX_GAP_SECONDS)
        self._last = now
