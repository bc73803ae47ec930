"""The observations of this server on each running attempt, kept in memory and lost when the server restarts."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from merlina.storage import jobs
from merlina.storage.database import Database
from merlina.storage.jobs import JobRecord

_log = logging.getLogger(__name__)
RequestKind = Literal["stop", "pause"]


@dataclass
class Observation:
    """What the server has observed of one running attempt.

    Times are seconds of the monotonic clock, except `delivered_at`, which is in seconds awake. The worker is detached
    while its run folder or lock is no longer the one it opened.
    """

    liveness_checked_at: float = -math.inf
    detached_since: float | None = None
    delivered_at: dict[RequestKind, float] = field(default_factory=dict)
    was_killed: bool = False
    start_error: str | None = None


class Observations:
    """The observations of all running attempts. `on_completed` is called with the id of each job that completes."""

    def __init__(self, database: Database, on_completed: Callable[[str], None]) -> None:
        self._database = database
        self._on_completed = on_completed
        self._observations: dict[tuple[str, int], Observation] = {}

    def observe(self, record: JobRecord) -> Observation:
        return self._observations.setdefault((record.job_id, record.attempt), Observation())

    def end(self, record: JobRecord) -> None:
        """Discard the observation of an attempt that has ended in `record.state`."""
        self._observations.pop((record.job_id, record.attempt), None)
        if record.state == "completed":
            self._on_completed(record.job_id)
        _log.info("%s %s", record.job_id, record.state)

    def end_unless_running(self, record: JobRecord) -> None:
        with self._database.read() as connection:
            current = jobs.get(connection, record.job_id)
        if current is not None and not current.is_running:
            self.end(current)
