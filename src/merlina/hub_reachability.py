"""Check whether the Hugging Face Hub is reachable, within 1.5 seconds, and cache the result.

The Hub's client retries for most of a minute before it gives up.
"""

from __future__ import annotations

import queue
import threading
import time
from dataclasses import dataclass, field

from huggingface_hub import constants
from huggingface_hub.utils import get_session  # type: ignore[attr-defined]

_WAIT_SECONDS = 1.5
_PROBE_SECONDS = 10.0
_SUCCESS_CACHED_SECONDS = 15.0
_FAILURE_CACHED_SECONDS = 30.0


@dataclass(frozen=True)
class _ProbeResult:
    problem: str | None
    until: float


@dataclass
class HubReachability:
    """Probe of the Hub: any HTTP response counts as reachable. Thread-safe."""

    _lock: threading.Lock = field(default_factory=threading.Lock)
    _found: _ProbeResult | None = None

    def problem(self) -> str | None:
        """Return why the Hub is unreachable; None if it is reachable."""
        if constants.is_offline_mode():
            return "HF_HUB_OFFLINE prevents access to the Hub"
        with self._lock:
            found = self._found
            if found is None or time.monotonic() >= found.until:
                found = self._start_probe()
        return found.problem

    def invalidate(self) -> None:
        """Discard the cached result, because a call to the Hub failed."""
        self._found = None

    def _start_probe(self) -> _ProbeResult:
        result: queue.SimpleQueue[_ProbeResult] = queue.SimpleQueue()
        threading.Thread(target=self._probe, args=(result,), name="hub probe", daemon=True).start()
        try:
            found = result.get(timeout=_WAIT_SECONDS)
        except queue.Empty:
            # The probe continues in its thread and replaces this result if a late response arrives.
            found = self._found = _failure(f"no response within {_WAIT_SECONDS:g} s")
        return found

    def _probe(self, result: queue.SimpleQueue[_ProbeResult]) -> None:
        try:
            get_session().head(constants.ENDPOINT, timeout=_PROBE_SECONDS, follow_redirects=False)
        except Exception as error:  # the client raises errors of the HTTP library that it uses
            found = _failure(type(error).__name__)
        else:
            found = _ProbeResult(None, time.monotonic() + _SUCCESS_CACHED_SECONDS)
        self._found = found
        result.put(found)


def _failure(reason: str) -> _ProbeResult:
    message = f"The Hub cannot be reached at {constants.ENDPOINT} ({reason}; retried in {_FAILURE_CACHED_SECONDS:g} s)"
    return _ProbeResult(message, time.monotonic() + _FAILURE_CACHED_SECONDS)
