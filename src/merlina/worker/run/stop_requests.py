"""Requests to stop or to pause, as the worker receives them.

A request is a file in the run folder. SIGTERM makes the worker check for it at once; if a full disk prevents the file,
SIGTERM alone requests a stop.

In the server, `jobs/requests.py` decides on them, and `executors/local.py` writes the file and sends the signal. In the
worker, `training/loop/callbacks.py` checks for them after each optimizer step, and `worker/run/run.py` completes them.
"""

from __future__ import annotations

import signal
from pathlib import Path


class ReceivedRequests:
    """Reads the requests to this worker. Creating the object sets the process's signal handlers."""

    def __init__(self, stop_file: Path, pause_file: Path) -> None:
        self._stop_file = stop_file
        self._pause_file = pause_file
        self._signaled = False
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    def is_set(self) -> bool:
        """Return whether a stop or pause is requested."""
        return self._signaled or self._stop_file.exists() or self._pause_file.exists()

    def reason_to_pause(self) -> str | None:
        """Return the reason of a pause; None if a stop was requested, which takes precedence over a pause."""
        if self._stop_file.exists() or not self._pause_file.exists():
            return None
        return self._pause_file.read_text()

    def _on_signal(self, _number: int, _frame: object) -> None:
        self._signaled = True
