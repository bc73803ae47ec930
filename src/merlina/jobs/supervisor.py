"""The one thread that moves jobs: it follows running ones, notices death, keeps the stop's grace, starts the next.

A pass loads in a short transaction, works outside it, and applies its result guarded by the state it read. What
becomes of a job depends on the database and its run folder. Kept in memory only, and lost at a restart of the server,
are since when a worker has been asked to end or detached, that it was killed for it, and why none was started.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from sqlalchemy import Connection

from merlina.checkpoints import remove_folder
from merlina.domain.job_states import END_STATE_FOR, EndReason
from merlina.errors import DiskFullError, StoredConfigError, is_disk_full
from merlina.executors.protocol import Executor
from merlina.faults import FaultPoint, reach
from merlina.hardware.gpus import Gpu
from merlina.jobs.awake_clock import AwakeClock
from merlina.jobs.ingest import end_without_log, has_log, ingest_all, ingest_next, record_end, record_pause
from merlina.jobs.moves import Moves
from merlina.jobs.output_folders import owner_among, settle_kept_model
from merlina.jobs.recovery import take_in_unknown
from merlina.jobs.requests import deliver_request, is_to_pause, pause_changes, reason_to_pause, requeue
from merlina.jobs.resuming import complete_placing, ways_on
from merlina.jobs.run_folders import remove_partial_model, remove_run_files
from merlina.jobs.scheduler import Plan, Start, plan, shortage_of_disk
from merlina.placement import last_placement
from merlina.processes import ProcessId
from merlina.runs import RunFolder, RunOrder
from merlina.schemas.parsing.stored_config import read_stored_config
from merlina.storage import jobs
from merlina.storage.database import Database
from merlina.storage.jobs import JobRecord

_log = logging.getLogger(__name__)
_TICK_SECONDS = 0.1
# While jobs only wait, for a GPU that another program uses or for room on the disk.
_WAITING_TICK_SECONDS = 1.0
_LIVENESS_SECONDS = 0.5
_DETACHED_SECONDS = 10.0
# Of one run's log, before the others are looked at again.
_BLOCKS_PER_LOOK = 4
# The same failure of the same job may last: logged no more often than this.
_COMPLAINT_SECONDS = 60.0


class Supervisor:
    """Runs passes until closed. `free_memory_for` is called before each start.

    `clock` gives epoch seconds, for timestamps. Durations are measured by the monotonic clock, from this server's own
    observation: a run that was asked to stop has its whole grace again after a restart of the server.
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
        list_gpus: Callable[[], Sequence[Gpu]],
        free_memory_for: Callable[[JobRecord], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._database = database
        self._moves = moves
        self._executor = executor
        self._runs_dir = runs_dir
        self._max_concurrent = max_concurrent
        self._share_gpus = share_gpus
        self._grace = stop_grace_seconds
        self._trust_remote_code = trust_remote_code
        self._max_row_mb = max_row_mb
        self._list_gpus = list_gpus
        self._free_memory_for = free_memory_for
        self._clock = clock
        self._news = threading.Event()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="supervisor", daemon=True)
        self._awake = AwakeClock()
        self._alive_checked: dict[str, float] = {}
        self._to_clean: set[str] = set()
        self._not_started: dict[str, str] = {}
        self._asked_at: dict[tuple[str, int, bool], float] = {}
        self._forced: set[tuple[str, int]] = set()
        self._to_take_up: set[str] = set()
        self._found_at_start: list[str] = []
        self._detached: dict[str, float] = {}
        self._complained_at: dict[tuple[str, type[Exception]], float] = {}

    def start(self) -> None:
        """Begin the passes. Returns soon, however much the runs have written while no server read it."""
        # Listed before the first request, which makes a folder before its job is in the database.
        self._found_at_start = os.listdir(self._runs_dir)
        with self._database.read() as connection:
            self._to_take_up = {record.job_id for record in jobs.running(connection)}
        self._thread.start()

    def close(self) -> None:
        """Ends the thread. Workers go on."""
        self._closing.set()
        self._news.set()
        self._thread.join(timeout=10)

    def wake(self) -> None:
        """Says that there may be something to start or to end, so that it need not wait for the next look."""
        self._news.set()

    def folder(self, job_id: str) -> RunFolder:
        return RunFolder(self._runs_dir / job_id)

    def look_at_queue(self) -> Plan:
        """What would start now, and what each other job waits for."""
        with self._database.read() as connection:
            queued, running = jobs.queued(connection), jobs.running(connection)
        if queued and (shortage := shortage_of_disk(self._runs_dir)) is not None:
            return Plan([], dict.fromkeys((record.job_id for record in queued), shortage))
        gpus = self._list_gpus() if queued else []
        return plan(queued, running, gpus, max_concurrent=self._max_concurrent, share_gpus=self._share_gpus)

    def run_pass(self) -> float | None:
        """One look at everything: events in, deaths noticed, stops enforced, deletions done, jobs started.

        Returns after how many seconds to look again; None where nothing runs or waits, until something is asked for.
        """
        self._awake.tick()
        with self._database.read() as connection:
            running = jobs.running(connection)
        behind = [record for record in running if not self._attend_safely(record)]
        self._clean_completed()
        unfinished = not self._finish_deletions() or bool(self._to_clean)
        self._move_on_paused()
        plan = self.look_at_queue()
        self._preempt(plan)
        for start in plan.starts:
            with self._isolated(f"{start.record.job_id} could not be started"):
                if not self._last_worker_lives(start.record):
                    self._start_job(start)
        if behind:
            return 0.0
        if running or plan.starts:
            return _TICK_SECONDS
        return _WAITING_TICK_SECONDS if plan.waiting or unfinished else None

    def _run(self) -> None:
        try:
            take_in_unknown(self._moves, self._found_at_start, self._runs_dir, _log.warning)
        except Exception:
            _log.exception("folders among the runs that belong to no job could not be looked at")
        has_found_uncleaned = False
        while not self._closing.is_set():
            began = time.monotonic()
            seconds: float | None = _WAITING_TICK_SECONDS
            try:
                if not has_found_uncleaned:
                    self._find_uncleaned()
                    has_found_uncleaned = True
                seconds = self.run_pass()
            except Exception as error:
                self._complain(error, "a pass over the jobs failed; trying again")
            if seconds == 0.0:
                # Requests are answered by this process too: reading on takes half of its time at most.
                seconds = time.monotonic() - began
            self._news.wait(seconds)
            self._news.clear()

    def _attend_safely(self, record: JobRecord) -> bool:
        """Attend to a run; return False if there is more of its log to read."""
        with self._isolated(f"{record.job_id} could not be attended to; trying again"):
            return self._attend(record)
        return True

    @contextlib.contextmanager
    def _isolated(self, failure: str) -> Iterator[None]:
        """Log an error of one job as `failure` and go on: it must not hold up the others."""
        try:
            yield
        except Exception as error:
            self._complain(error, failure)

    def _complain(self, error: Exception, what: str) -> None:
        kind = (what, type(error))
        if time.monotonic() - self._complained_at.get(kind, -math.inf) < _COMPLAINT_SECONDS:
            return
        self._complained_at[kind] = time.monotonic()
        if isinstance(error, DiskFullError) or (isinstance(error, OSError) and is_disk_full(error)):
            _log.warning("%s: the disk is full", what)
        else:
            _log.error(what, exc_info=error)

    def _last_worker_lives(self, record: JobRecord) -> bool:
        """Whether a resumed run's last worker is still on its way out; the next one is started after it."""
        try:
            return self._executor.is_alive(self.folder(record.job_id), ProcessId.parse(record.worker or ""))
        except OSError:
            # The launch takes the lock itself, and fails with what is wrong with the folder.
            return False

    def _attend(self, record: JobRecord) -> bool:
        folder = self.folder(record.job_id)
        for _ in range(_BLOCKS_PER_LOOK):
            taken = ingest_next(self._moves, record, folder)
            if taken is None:
                break
            record = taken
        if not record.is_running:
            self._note_end(record)
            return True
        self._enforce_request(record, folder)
        if taken is not None:
            return False
        if self._take_up(record, folder):
            return True
        now = time.monotonic()
        if now - self._alive_checked.get(record.job_id, -math.inf) >= _LIVENESS_SECONDS:
            self._alive_checked[record.job_id] = now
            self._look_at_worker(record, folder)
        return True

    def _look_at_worker(self, record: JobRecord, folder: RunFolder) -> None:
        """Records the end of a dead worker; one that lost its folder or lock is to end itself soon, or is killed."""
        worker = ProcessId.parse(record.worker or "")
        if not self._executor.is_alive(folder, worker):
            self._bury(record, folder)
            self._note_if_ended(record)
        elif self._executor.is_detached(folder):
            since = self._detached.setdefault(record.job_id, time.monotonic())
            if time.monotonic() - since > _DETACHED_SECONDS:
                _log.warning("%s lost its run folder or its lock and did not end itself; killing it", record.job_id)
                self._executor.kill(folder, worker)
        else:
            self._detached.pop(record.job_id, None)

    def _enforce_request(self, record: JobRecord, folder: RunFolder) -> None:
        """Deliver a stop or pause request that the worker has not received, and end one that does not obey in time.

        The time begins with the delivery: a worker that the request could not reach is not killed for it.
        """
        pauses = is_to_pause(record)
        if not pauses and record.stop_requested_at is None:
            return
        error: OSError | None = None
        if not (folder.pause_file if pauses else folder.stop_file).exists():
            error = deliver_request(self._executor, folder, record)
        request = (record.job_id, record.attempt, pauses)
        if error is None:
            self._asked_at.setdefault(request, self._awake.seconds)
        else:
            self._complain(error, f"the worker of {record.job_id} did not receive its request; trying again")
        if self._awake.seconds - self._asked_at.get(request, math.inf) > self._grace:
            self._force_stop(record, folder)

    def _take_up(self, record: JobRecord, folder: RunFolder) -> bool:
        """Start a worker whose start was committed by a server that was killed before it could start it."""
        if record.job_id not in self._to_take_up:
            return False
        self._to_take_up.discard(record.job_id)
        if (
            record.state != "initializing"
            or record.has_begun
            or self._executor.is_alive(folder, ProcessId.parse(record.worker or ""))
        ):
            return False
        self._launch(record)
        return True

    def _note_if_ended(self, record: JobRecord) -> None:
        with self._database.read() as connection:
            current = jobs.get(connection, record.job_id)
        if current is not None and not current.is_running:
            self._note_end(replace(record, state=current.state))

    def _note_end(self, record: JobRecord) -> None:
        self._alive_checked.pop(record.job_id, None)
        self._not_started.pop(record.job_id, None)
        self._detached.pop(record.job_id, None)
        self._forced.discard((record.job_id, record.attempt))
        for pauses in (False, True):
            self._asked_at.pop((record.job_id, record.attempt, pauses), None)
        if record.state == "completed":
            self._to_clean.add(record.job_id)
        _log.info("%s %s", record.job_id, record.state)

    def _force_stop(self, record: JobRecord, folder: RunFolder) -> None:
        if (record.job_id, record.attempt) not in self._forced:
            self._forced.add((record.job_id, record.attempt))
            wish = "pause" if is_to_pause(record) else "stop"
            _log.warning("%s did not %s within %g s; killing it", record.job_id, wish, self._grace)
        self._executor.kill(folder, ProcessId.parse(record.worker or ""))

    def _bury(self, record: JobRecord, folder: RunFolder) -> None:
        """Writes the last event of a dead worker, unless it managed to write one between our two looks."""
        record = ingest_all(self._moves, record, folder)
        if not record.is_running:
            return
        # A move that failed has written events, too, and the last event is numbered after them.
        complete_placing(record, folder)
        record = ingest_all(self._moves, record, folder)
        with self._database.write() as connection:
            settle_kept_model(connection, folder)
        if not has_log(record, folder):
            lost = f"event log {folder.events_file}" if folder.path.is_dir() else f"run folder {folder.path}"
            reason = f"The run ended because its {lost} was removed or cut while it was running"
            end_without_log(self._moves, record, folder, END_STATE_FOR[EndReason.WORKER_DIED], reason)
            return
        if is_to_pause(record):
            if record_pause(record, folder, reason_to_pause(record), self._end_of_paused(record, folder)):
                ingest_all(self._moves, record, folder)
            return
        cause = EndReason.STOP_REQUESTED if record.stop_requested_at is not None else EndReason.WORKER_DIED
        error = self._obituary(record, folder, cause)
        if record.job_id in self._not_started:
            cause, error = EndReason.NOT_STARTED, self._not_started[record.job_id]
        if record_end(record, folder, END_STATE_FOR[cause], error):
            ingest_all(self._moves, record, folder)

    def _end_of_paused(self, record: JobRecord, folder: RunFolder) -> str:
        forced = (record.job_id, record.attempt) in self._forced
        death = f"did not pause within {self._grace:g} s and was killed" if forced else None
        return (
            f"Paused: {reason_to_pause(record)}. The worker process {death or self._executor.cause_of_death(folder)}; "
            f"{ways_on(record, folder)}"
        )

    def _obituary(self, record: JobRecord, folder: RunFolder, cause: EndReason) -> str | None:
        if cause is EndReason.STOP_REQUESTED:
            if last_placement(folder.events_file) is not None:
                return None
            if (record.job_id, record.attempt) in self._forced:
                return f"The run did not stop within {self._grace:g} s and was killed; {ways_on(record, folder)}"
            return f"The worker ended before it had saved what it had; {ways_on(record, folder)}"
        where = f"At step {record.step} of {record.total_steps}" if record.step else f"While {record.state}"
        return f"{where} the worker process {self._executor.cause_of_death(folder)}; {ways_on(record, folder)}"

    def _preempt(self, plan: Plan) -> None:
        for record, high in plan.preempted:
            changes = pause_changes(record, self._clock(), made_way_for=high)
            asked = self._moves.change(record, changes) if changes else None
            if asked is not None:
                # Repeated by each pass until the worker is told.
                deliver_request(self._executor, self.folder(record.job_id), asked)
                _log.info("%s makes way for %s", record.job_id, high)

    def _move_on_paused(self) -> None:
        """Those that made way go back to the queue; those that were asked to stop on their way into a pause end."""
        with self._database.read() as connection:
            found = jobs.paused_for_now(connection)
        for record in found:
            with self._isolated(f"{record.job_id} could not be moved on from its pause; trying again"):
                if record.stop_requested_at is None:
                    requeue(self._moves, self.folder(record.job_id), record)
                else:
                    values = {"state": END_STATE_FOR[EndReason.STOP_REQUESTED], "ended_at": self._clock()}
                    self._moves.change(record, values)

    def _start_job(self, start: Start) -> None:
        def is_free(connection: Connection) -> bool:
            return owner_among(jobs.running(connection), start.record) is None

        # The log may say that the job ran after this row of a restored database was written.
        waiting = ingest_all(self._moves, start.record, self.folder(start.record.job_id))
        if waiting.state != "queued":
            return
        changes = {"state": "initializing", "gpus": start.gpus}
        record = self._moves.change(waiting, changes, only_if=is_free)
        if record is not None:
            reach(FaultPoint.START_CLAIMED)
            self._launch(record)

    def _launch(self, record: JobRecord) -> None:
        folder = self.folder(record.job_id)
        self._not_started.pop(record.job_id, None)
        _log.info("starting %s (attempt %d)", record.job_id, record.attempt)
        try:
            self._free_memory_for(record)
        except Exception:  # what keeps memory from it is no reason for a run not to start
            _log.exception("%s may lack the memory that others hold", record.job_id)
        try:
            self._executor.launch(folder, self._order(record), record.gpus)
        except (OSError, ValueError, StoredConfigError) as error:
            self._not_started[record.job_id] = f"The worker could not be started: {error}"
            self._bury_not_started(record, folder)
            self._note_if_ended(record)
            return
        self._alive_checked[record.job_id] = time.monotonic()

    def _bury_not_started(self, record: JobRecord, folder: RunFolder) -> None:
        try:
            self._bury(record, folder)
        except OSError as error:
            # What kept the worker from its folder may keep the end from its log: it is in the database alone then.
            self._complain(error, f"the end of {record.job_id} could not be written to its log")
            reason = self._not_started[record.job_id]
            ended = {
                "state": END_STATE_FOR[EndReason.NOT_STARTED],
                "error": reason,
                "gpus": None,
                "ended_at": self._clock(),
            }
            self._moves.change(record, ended)

    def _order(self, record: JobRecord) -> RunOrder:
        return RunOrder(
            job_id=record.job_id,
            attempt=record.attempt,
            resume=record.attempt > 1,
            after_seq=record.last_seq,
            resume_step=record.last_checkpoint or 0,
            config=read_stored_config(record.config, record.job_id),
            dataset_file=record.dataset_file,
            output_dir=record.target_dir,
            trust_remote_code=self._trust_remote_code,
            max_row_mb=self._max_row_mb,
            gpus=record.gpus,
            processes=max(1, len(record.gpus or [])),
            memory_limit_mb=record.memory_needed_mb if record.gpus else None,
        )

    def _find_uncleaned(self) -> None:
        """Completed jobs whose worker, and whose last server, died before all was removed that a resume might need."""
        with self._database.read() as connection:
            completed = jobs.ids_in(connection, "completed")
        names = RunFolder(self._runs_dir)
        to_remove = (names.checkpoints_dir.name, names.secrets_file.name)
        for job_id in completed.intersection(self._found_at_start):
            if any(os.path.exists(f"{self._runs_dir}/{job_id}/{name}") for name in to_remove):
                self._to_clean.add(job_id)

    def _clean_completed(self) -> None:
        """The worker removes its checkpoints after its last event; what it left when it died is removed here."""
        for job_id in list(self._to_clean):
            folder = self.folder(job_id)
            with self._isolated(f"what {folder.path} holds of a completed job could not be removed; trying again"):
                folder.secrets_file.unlink(missing_ok=True)
                if not folder.path.exists() or not self._executor.is_alive(folder):
                    remove_folder(folder.checkpoints_dir)
                    self._to_clean.discard(job_id)

    def _finish_deletions(self) -> bool:
        """Remove what is left of deleted jobs; return False if a worker on its way out still writes."""
        with self._database.read() as connection:
            doomed = jobs.waiting_for_deletion(connection)
        remaining = [record for record in doomed if not self._finish_deletion(record)]
        return not remaining

    def _finish_deletion(self, record: JobRecord) -> bool:
        folder = self.folder(record.job_id)
        with self._isolated(f"{record.job_id} could not be deleted; trying again"):
            if self._executor.is_alive(folder, ProcessId.parse(record.worker or "")):
                return False
            try:
                # A server killed after this finds at its next start that these files are to go.
                folder.deleted_file.touch(mode=0o600)
            except OSError:
                # Without it a later server would list the job again, so that its row goes last.
                remove_run_files(folder)
            self._moves.remove(record)
            remove_run_files(folder)
            remove_partial_model(record.target_dir, record.job_id)
            return True
        return False
