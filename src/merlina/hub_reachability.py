"""Whether the Hugging Face Hub answers at all: found out in a moment, and remembered for a while.

Its client tries again and again for most of a minute before it gives up, which nobody should wait for twice.
"""

from __future__ import annotations

import queue
import threading
import time
from dataclasses import dataclass, field

from huggingface_hub import constants
from huggingface_hub.utils import get_session  # type: ignore[attr-defined]

_PATIENCE_SECONDS = 1.5
_PROBE_SECONDS = 10.0
_TRUSTED_SECONDS = 15.0
_REMEMBERED_SECONDS = 30.0


@dataclass(frozen=True)
class _Found:
    problem: str | None
    until: float


@dataclass
class HubReach:
    """Asks the Hub for any answer, whatever it says. Calls come from any thread."""

    _lock: threading.Lock = field(default_factory=threading.Lock)
    _found: _Found | None = None

    def problem(self) -> str | None:
        """Return why the Hub can't be asked now, within two seconds; None if it can."""
        if constants.is_offline_mode():
            return "HF_HUB_OFFLINE keeps the server from the Hub"
        with self._lock:
            found = self._found
            if found is None or time.monotonic() >= found.until:
                found = self._look()
        return found.problem

    def forget(self) -> None:
        """Look again at the next question, since a call has failed."""
        self._found = None

    def _look(self) -> _Found:
        answered: queue.SimpleQueue[_Found] = queue.SimpleQueue()
        threading.Thread(target=self._probe, args=(answered,), name="hub probe", daemon=True).start()
        try:
            found = answered.get(timeout=_PATIENCE_SECONDS)
        except queue.Empty:
            # The probe goes on for a while: should an answer come late, the Hub is asked again at once.
            found = self._found = _problem(f"no answer within {_PATIENCE_SECONDS:g} s")
        return found

    def _probe(self, answered: queue.SimpleQueue[_Found]) -> None:
        try:
            get_session().head(constants.ENDPOINT, timeout=_PROBE_SECONDS, follow_redirects=False)
        except Exception as error:  # the client lets errors of its HTTP library through, whichever that is
            found = _problem(type(error).__name__)
        else:
            found = _Found(None, time.monotonic() + _TRUSTED_SECONDS)
        self._found = found
        answered.put(found)


def _problem(reason: str) -> _Found:
    message = f"The Hub can't be reached at {constants.ENDPOINT} ({reason}; it is asked again in a while)"
    return _Found(message, time.monotonic() + _REMEMBERED_SECONDS)
