"""A clock for time limits of processes that stops while the process waits for a processor."""

from __future__ import annotations

import time
from pathlib import Path

_NANO = 1e9


class ProgressClock:
    """`time.monotonic()` minus the time that process `pid` has waited for a processor since the clock was created.

    On a busy machine the same work takes longer although nothing is wrong. If the kernel does not report how long a
    thread was runnable but not running, this is `time.monotonic()`.
    """

    def __init__(self, pid: int) -> None:
        self._tasks = Path(f"/proc/{pid}/task")
        self._read_at = time.monotonic()
        self._delays = self._read()
        self._waited = 0.0

    def now(self) -> float:
        """Read the threads' waiting times and return the time."""
        now, delays = time.monotonic(), self._read()
        # Threads wait in parallel, so the process as a whole has lost the longest of their waits.
        longest = max((delay - self._delays.get(task, 0.0) for task, delay in delays.items()), default=0.0)
        self._waited += min(max(longest, 0.0), now - self._read_at)
        self._read_at, self._delays = now, delays
        return now - self._waited

    def _read(self) -> dict[str, float]:
        """Return the seconds that each thread has been runnable but not running."""
        found = {}
        try:
            for task in self._tasks.iterdir():
                found[task.name] = int((task / "schedstat").read_text().split()[1]) / _NANO
        except (OSError, ValueError, IndexError):
            return found
        return found
