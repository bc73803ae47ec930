"""Starting workers: commit the start, free memory, write the order and launch the process."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import Connection

from merlina.domain.job_states import END_STATE_FOR, EndReason
from merlina.errors import MerlinaError
from merlina.executors.protocol import Executor
from merlina.faults import FaultPoint, reach
from merlina.jobs.ingest import ingest_all
from merlina.jobs.moves import Moves
from merlina.jobs.output_folders import owner_among
from merlina.jobs.resuming import needs_data
from merlina.jobs.scheduler import Start
from merlina.jobs.supervisor.dead_workers import DeadWorkers
from merlina.jobs.supervisor.failure_log import FailureLog
from merlina.jobs.supervisor.last_events import end_in_database
from merlina.jobs.supervisor.observations import Observations
from merlina.processes import ProcessId
from merlina.run_folder.folder import RunFolder
from merlina.run_folder.order import RunOrder
from merlina.schemas.datasets.config import DatasetConfig
from merlina.schemas.parsing.stored_config import read_stored_config
from merlina.storage import jobs
from merlina.storage.jobs import JobRecord

_log = logging.getLogger(__name__)


@dataclass
class Starter:
    """Starts the workers of jobs that the scheduler chose. `free_memory_for` is called before each launch.

    `find_files` returns the files of additional sources by their field, and raises MerlinaError if one is missing.
    `committed` are the jobs that the previous server committed to start, perhaps without launching their workers.
    """

    moves: Moves
    executor: Executor
    observations: Observations
    dead_workers: DeadWorkers
    failures: FailureLog
    runs_dir: Path
    trust_remote_code: bool
    max_row_mb: int
    allowed_data_urls: tuple[str, ...]
    free_memory_for: Callable[[JobRecord], None]
    find_files: Callable[[DatasetConfig], dict[str, str]]
    monotonic: Callable[[], float]
    committed: set[str] = field(default_factory=set)

    def start(self, start: Start) -> None:
        """Start a queued job, unless the worker of its previous attempt is still alive."""
        record, folder = start.record, RunFolder(self.runs_dir / start.record.job_id)
        if self._previous_worker_lives(record, folder):
            return

        def is_free(connection: Connection) -> bool:
            return owner_among(jobs.running(connection), record) is None

        # The log may show that the job ran after this row of a restored database was written.
        waiting = ingest_all(self.moves, record, folder)
        if waiting.state != "queued":
            return
        committed = self.moves.change(waiting, {"state": "initializing", "gpus": start.gpus}, only_if=is_free)
        if committed is not None:
            reach(FaultPoint.START_COMMITTED)
            self._launch(committed, folder)

    def start_committed(self, record: JobRecord, folder: RunFolder) -> bool:
        """Launch the worker of a job if the previous server committed the start and died before the launch."""
        if record.job_id not in self.committed:
            return False
        self.committed.discard(record.job_id)
        is_alive = self.executor.is_alive(folder, ProcessId.parse(record.worker or ""))
        if record.state != "initializing" or record.has_begun or is_alive:
            return False
        self._launch(record, folder)
        return True

    def _previous_worker_lives(self, record: JobRecord, folder: RunFolder) -> bool:
        try:
            return self.executor.is_alive(folder, ProcessId.parse(record.worker or ""))
        except OSError:
            # The launch takes the lock itself and fails with the reason.
            return False

    def _launch(self, record: JobRecord, folder: RunFolder) -> None:
        observed = self.observations.observe(record)
        observed.start_error = None
        _log.info("starting %s (attempt %d)", record.job_id, record.attempt)
        try:
            self.free_memory_for(record)
        except Exception:  # the run may start nevertheless
            _log.exception("memory could not be freed for %s", record.job_id)
        try:
            self.executor.launch(folder, self._order(record, folder), record.gpus)
        except (OSError, ValueError, MerlinaError) as error:
            observed.start_error = f"The worker could not be started: {error}"
            self._finalize_not_started(record, folder, observed.start_error)
            self.observations.end_unless_running(record)
            return
        observed.liveness_checked_at = self.monotonic()

    def _finalize_not_started(self, record: JobRecord, folder: RunFolder, start_error: str) -> None:
        try:
            self.dead_workers.finalize(record, folder, self.observations.observe(record))
        except OSError as error:
            # The problem that prevented the launch may affect the log too.
            self.failures.report(error, f"the end of {record.job_id} could not be written to its log")
            end_in_database(self.moves, record, END_STATE_FOR[EndReason.NOT_STARTED], start_error)

    def _order(self, record: JobRecord, folder: RunFolder) -> RunOrder:
        config = read_stored_config(record.config, record.job_id)
        # The data may be gone if the attempt only writes the last event.
        reads_data = record.attempt == 1 or needs_data(record, folder, force=folder.start_over_file.exists())
        return RunOrder(
            job_id=record.job_id,
            attempt=record.attempt,
            resume=record.attempt > 1,
            after_seq=record.last_seq,
            resume_step=record.last_checkpoint or 0,
            config=config,
            dataset_file=record.dataset_file,
            source_files=self.find_files(config.dataset) if reads_data else {},
            allowed_data_urls=self.allowed_data_urls,
            output_dir=record.target_dir,
            trust_remote_code=self.trust_remote_code,
            max_row_mb=self.max_row_mb,
            gpus=record.gpus,
            num_ranks=max(1, len(record.gpus or [])),
            memory_limit_mb=record.memory_needed_mb if record.gpus else None,
        )
