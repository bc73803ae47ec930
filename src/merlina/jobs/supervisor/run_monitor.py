"""Monitor running jobs: ingest their events, enforce stop and pause requests, and detect dead workers."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from merlina.executors.protocol import Executor
from merlina.jobs.ingest import ingest_next
from merlina.jobs.moves import Moves
from merlina.jobs.requests import deliver_request, is_pause_pending
from merlina.jobs.supervisor.awake_clock import AwakeClock
from merlina.jobs.supervisor.dead_workers import DeadWorkers
from merlina.jobs.supervisor.failure_log import FailureLog
from merlina.jobs.supervisor.observations import Observation, Observations, RequestKind
from merlina.jobs.supervisor.starts import Starter
from merlina.processes import ProcessId
from merlina.run_folder.folder import RunFolder
from merlina.storage.jobs import JobRecord

_log = logging.getLogger(__name__)
_LIVENESS_SECONDS = 0.5
_DETACHED_SECONDS = 10.0
# Blocks of one run's log per cycle, so that the other runs get their turn.
_BLOCKS_PER_CYCLE = 4


@dataclass(frozen=True)
class RunMonitor:
    """Monitors running jobs, one at a time. `grace_seconds` is the time a worker has to complete a request."""

    moves: Moves
    executor: Executor
    observations: Observations
    dead_workers: DeadWorkers
    starter: Starter
    failures: FailureLog
    awake: AwakeClock
    runs_dir: Path
    grace_seconds: float
    monotonic: Callable[[], float]

    def update(self, record: JobRecord) -> bool:
        """Bring one running job up to date; return False if more of its log is unread."""
        folder = RunFolder(self.runs_dir / record.job_id)
        for _ in range(_BLOCKS_PER_CYCLE):
            changed = ingest_next(self.moves, record, folder)
            if changed is None:
                break
            record = changed
        if not record.is_running:
            self.observations.end(record)
            return True
        observed = self.observations.observe(record)
        self._enforce_request(record, folder, observed)
        if changed is not None:
            return False
        if not self.starter.start_committed(record, folder):
            self._check_worker(record, folder, observed)
        return True

    def _check_worker(self, record: JobRecord, folder: RunFolder, observed: Observation) -> None:
        """Finalize a dead worker. One that lost its folder or lock should end itself soon, and is killed otherwise."""
        now = self.monotonic()
        if now - observed.liveness_checked_at < _LIVENESS_SECONDS:
            return
        observed.liveness_checked_at = now
        worker = ProcessId.parse(record.worker or "")
        if not self.executor.is_alive(folder, worker):
            self.dead_workers.finalize(record, folder, observed)
            self.observations.end_unless_running(record)
        elif not self.executor.is_detached(folder):
            observed.detached_since = None
        elif observed.detached_since is None:
            observed.detached_since = now
        elif now - observed.detached_since > _DETACHED_SECONDS:
            _log.warning("%s lost its run folder or its lock and did not end itself; killing it", record.job_id)
            self.executor.kill(folder, worker)

    def _enforce_request(self, record: JobRecord, folder: RunFolder, observed: Observation) -> None:
        """Deliver a stop or pause request that the worker has not received; kill a worker that does not complete it.

        The grace period begins with the delivery: a worker that could not be reached is not killed.
        """
        pauses = is_pause_pending(record)
        if not pauses and record.stop_requested_at is None:
            return
        error: OSError | None = None
        if not (folder.pause_file if pauses else folder.stop_file).exists():
            error = deliver_request(self.executor, folder, record)
        kind: RequestKind = "pause" if pauses else "stop"
        if error is None:
            observed.delivered_at.setdefault(kind, self.awake.seconds)
        else:
            self.failures.report(error, f"the worker of {record.job_id} did not receive its request; trying again")
        if self.awake.seconds - observed.delivered_at.get(kind, math.inf) > self.grace_seconds:
            if not observed.was_killed:
                _log.warning("%s did not %s within %g s; killing it", record.job_id, kind, self.grace_seconds)
            observed.was_killed = True
            self.executor.kill(folder, ProcessId.parse(record.worker or ""))
