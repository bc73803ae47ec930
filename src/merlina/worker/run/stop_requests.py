"""The wish to stop or to pause: a file in the run folder, and a signal so that it is noticed soon."""

from __future__ import annotations

import signal
from pathlib import Path


class StopRequest:
    """Whether a stop or a pause was asked for. Taking it on sets the process's signal handlers."""

    def __init__(self, stop_file: Path, pause_file: Path) -> None:
        self._stop_file = stop_file
        self._pause_file = pause_file
        self._signalled = False
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    def is_set(self) -> bool:
        return self._signalled or self._stop_file.exists() or self._pause_file.exists()

    def reason_to_pause(self) -> str | None:
        """Why it is only to pause; None where it is to stop. A stop outweighs a pause."""
        if self._stop_file.exists() or not self._pause_file.exists():
            return None
        return self._pause_file.read_text()

    def _on_signal(self, _number: int, _frame: object) -> None:
        self._signalled = True
