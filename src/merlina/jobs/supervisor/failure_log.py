"""Logging of failures that must not stop the supervisor, each no more than once a minute."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Iterator

from merlina.errors import DiskFullError, is_disk_full

_log = logging.getLogger(__name__)
_REPEAT_SECONDS = 60.0


class FailureLog:
    """Logs errors by what failed; a lasting failure is repeated after a minute."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._logged_at: dict[tuple[str, type[Exception]], float] = {}

    @contextlib.contextmanager
    def isolated(self, failure: str) -> Iterator[None]:
        """Log an error as `failure` and suppress it, so that one job's error does not affect the others."""
        try:
            yield
        except Exception as error:
            self.report(error, failure)

    def report(self, error: Exception, failure: str) -> None:
        kind, now = (failure, type(error)), self._monotonic()
        if now - self._logged_at.get(kind, -math.inf) < _REPEAT_SECONDS:
            return
        self._logged_at[kind] = now
        if isinstance(error, DiskFullError) or (isinstance(error, OSError) and is_disk_full(error)):
            _log.warning("%s: the disk is full", failure)
        else:
            _log.error(failure, exc_info=error)
