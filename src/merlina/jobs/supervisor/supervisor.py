"""The supervisor thread, which repeats a cycle over all jobs.

A cycle reads in a short transaction, works outside it, and writes updates that are guarded by the state it read. The
database and the run folder alone determine a job's states; `observations` are kept in memory.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from merlina.executors.protocol import Executor
from merlina.hardware.gpus import Gpu
from merlina.jobs.moves import Moves
from merlina.jobs.recovery import recover_jobs
from merlina.jobs.requests import deliver_request, pause_changes, requeue
from merlina.jobs.scheduler import Plan, disk_shortage, plan
from merlina.jobs.supervisor.awake_clock import AwakeClock
from merlina.jobs.supervisor.cleanup import Cleanup
from merlina.jobs.supervisor.dead_workers import DeadWorkers
from merlina.jobs.supervisor.failure_log import FailureLog
from merlina.jobs.supervisor.observations import Observations
from merlina.jobs.supervisor.run_monitor import RunMonitor
from merlina.jobs.supervisor.starts import Starter
from merlina.run_folder.folder import RunFolder
from merlina.schemas.datasets.config import DatasetConfig
from merlina.storage import jobs
from merlina.storage.database import Database
from merlina.storage.jobs import JobRecord

_log = logging.getLogger(__name__)
_TICK_SECONDS = 0.1
# While jobs only wait, for a GPU that another program uses or for disk space.
_WAITING_TICK_SECONDS = 1.0


class Supervisor:
    """Runs cycles until closed.

    `free_memory_for` is called before each start, and `find_files` to locate additional sources.

    `clock` returns epoch seconds, for timestamps. Durations are measured by `monotonic`, from this server's own
    observation: a run that was asked to stop has its whole grace period again after a restart of the server.
    """

    def __init__(
        self,
        database: Database,
        moves: Moves,
        executor: Executor,
        *,
        runs_dir: Path,
        max_concurrent: int,
        share_gpus: bool,
        stop_grace_seconds: float,
        trust_remote_code: bool,
        max_row_mb: int,
        allowed_data_urls: tuple[str, ...],
        list_gpus: Callable[[], Sequence[Gpu]],
        free_memory_for: Callable[[JobRecord], None],
        find_files: Callable[[DatasetConfig], dict[str, str]],
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = database
        self._moves = moves
        self._executor = executor
        self._runs_dir = runs_dir
        self._max_concurrent = max_concurrent
        self._share_gpus = share_gpus
        self._list_gpus = list_gpus
        self._clock = clock
        self._wakes = threading.Event()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="supervisor", daemon=True)
        self._found_at_start: list[str] = []
        self._awake = AwakeClock(monotonic)
        self._failures = failures = FailureLog(monotonic)
        self._cleanup = Cleanup(moves, executor, failures, runs_dir)
        observations = Observations(database, self._cleanup.add_completed)
        dead_workers = DeadWorkers(moves, executor, stop_grace_seconds)
        self._starter = Starter(
            moves,
            executor,
            observations,
            dead_workers,
            failures,
            runs_dir,
            trust_remote_code,
            max_row_mb,
            allowed_data_urls,
            free_memory_for,
            find_files,
            monotonic,
        )
        self._monitor = RunMonitor(
            moves,
            executor,
            observations,
            dead_workers,
            self._starter,
            failures,
            self._awake,
            runs_dir,
            stop_grace_seconds,
            monotonic,
        )

    def start(self) -> None:
        """Start the thread. Events that runs wrote while no server ran are ingested in the thread."""
        # Listed before the first request, which creates a folder before its job is in the database.
        self._found_at_start = os.listdir(self._runs_dir)
        with self._database.read() as connection:
            self._starter.committed = {record.job_id for record in jobs.running(connection)}
        self._thread.start()

    def close(self) -> None:
        """End the thread. Workers continue."""
        self._closing.set()
        self._wakes.set()
        self._thread.join(timeout=10)

    def wake(self) -> None:
        """Start the next cycle now, because there may be a job to start or to end."""
        self._wakes.set()

    def plan(self) -> Plan:
        """Return which jobs would start now, and what each of the others waits for."""
        with self._database.read() as connection:
            queued, running = jobs.queued(connection), jobs.running(connection)
        if queued and (shortage := disk_shortage(self._runs_dir)) is not None:
            return Plan([], dict.fromkeys((record.job_id for record in queued), shortage))
        gpus = self._list_gpus() if queued else []
        return plan(queued, running, gpus, max_concurrent=self._max_concurrent, share_gpus=self._share_gpus)

    def run_cycle(self) -> float | None:
        """Update all jobs once: ingest events, enforce requests, finalize dead workers, clean up, start jobs.

        Return the seconds until the next cycle; None if there is nothing to do until the next request.
        """
        self._awake.tick()
        with self._database.read() as connection:
            running = jobs.running(connection)
        behind = [record for record in running if not self._update(record)]
        has_files_left = self._cleanup.run()
        self._requeue_preempted()
        plan = self.plan()
        self._preempt(plan)
        for start in plan.starts:
            with self._failures.isolated(f"{start.record.job_id} could not be started"):
                self._starter.start(start)
        if behind:
            return 0.0
        if running or plan.starts:
            return _TICK_SECONDS
        return _WAITING_TICK_SECONDS if plan.waiting or has_files_left else None

    def _run(self) -> None:
        try:
            recover_jobs(self._moves, self._found_at_start, self._runs_dir, _log.warning)
        except Exception:
            _log.exception("the run folders that belong to no job could not be read")
        has_found_completed = False
        while not self._closing.is_set():
            began = time.monotonic()
            seconds: float | None = _WAITING_TICK_SECONDS
            try:
                if not has_found_completed:
                    self._cleanup.find_completed(self._found_at_start)
                    has_found_completed = True
                seconds = self.run_cycle()
            except Exception as error:
                self._failures.report(error, "a cycle over the jobs failed; trying again")
            if seconds == 0.0:
                # This process also serves requests: ingesting takes at most half of its time.
                seconds = time.monotonic() - began
            self._wakes.wait(seconds)
            self._wakes.clear()

    def _update(self, record: JobRecord) -> bool:
        with self._failures.isolated(f"{record.job_id} could not be updated; trying again"):
            return self._monitor.update(record)
        return True

    def _preempt(self, plan: Plan) -> None:
        for record, high in plan.preempted:
            changes = pause_changes(record, self._clock(), preempted_by=high)
            changed = self._moves.change(record, changes) if changes else None
            if changed is not None:
                # Each cycle repeats this until the worker has received it.
                deliver_request(self._executor, RunFolder(self._runs_dir / record.job_id), changed)
                _log.info("%s is preempted by %s", record.job_id, high)

    def _requeue_preempted(self) -> None:
        """Return preempted jobs to the queue."""
        with self._database.read() as connection:
            found = jobs.preempted(connection)
        for record in found:
            with self._failures.isolated(f"{record.job_id} could not be returned to the queue; trying again"):
                requeue(self._moves, RunFolder(self._runs_dir / record.job_id), record)
