"""A clock for the time that a process may take: it stands still while the process waits for a processor."""

from __future__ import annotations

import time
from pathlib import Path

_NANO = 1e9


class PatientClock:
    """`time.monotonic()` less what the process `pid` has waited for a processor since the clock was made.

    On a busy machine the same work takes longer without anything being wrong. Where the kernel doesn't say how long a
    thread was ready and not running, this is `time.monotonic()`.
    """

    def __init__(self, pid: int) -> None:
        self._tasks = Path(f"/proc/{pid}/task")
        self._looked_at = time.monotonic()
        self._delays = self._read()
        self._waited = 0.0

    def now(self) -> float:
        """Look again, and return the time."""
        now, delays = time.monotonic(), self._read()
        # Threads wait side by side, so the longest of their waits is what the process as a whole has lost.
        longest = max((delay - self._delays.get(task, 0.0) for task, delay in delays.items()), default=0.0)
        self._waited += min(max(longest, 0.0), now - self._looked_at)
        self._looked_at, self._delays = now, delays
        return now - self._waited

    def _read(self) -> dict[str, float]:
        """Seconds that each thread has been ready without running."""
        found = {}
        try:
            for task in self._tasks.iterdir():
                found[task.name] = int((task / "schedstat").read_text().split()[1]) / _NANO
        except (OSError, ValueError, IndexError):
            return found
        return found
