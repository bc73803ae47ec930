"""How long this process has been awake: the measure for whatever it waits for on behalf of a run."""

from __future__ import annotations

import time
from collections.abc import Callable

# A longer gap between two looks means that this process was suspended, and most likely all that it waits for.
_LONGEST_GAP = 5.0


class AwakeClock:
    """Counts seconds between calls of `tick`, from the monotonic clock; time asleep counts at most five seconds.

    A laptop that wakes up, a container that is thawed or a server that restarts gives a run the time that is left, or
    all of it again; setting the clock changes nothing.
    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.seconds = 0.0
        self._monotonic = monotonic
        self._last = monotonic()

    def tick(self) -> None:
        now = self._monotonic()
        self.seconds += min(now - self._last, _LONGEST_GAP)
        self._last = now
