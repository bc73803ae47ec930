"""The commands by which clients submit, stop, pause, resume and delete jobs. Each returns after its commit.

A command is decided on the job as it was read and carried out by one guarded update (`jobs.moves`): of two concurrent
commands, one wins and the other raises ConflictError with the job's current state.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any

from sqlalchemy import Connection

from merlina import checkpoints
from merlina.domain.job_states import RESUMABLE_STATES, JobState
from merlina.errors import ConflictError, DataError, DiskFullError, InvalidRequestError, NotFoundError
from merlina.executors.protocol import Executor
from merlina.faults import FaultPoint, reach
from merlina.jobs.ingest import is_log_intact, repair_end_of_log
from merlina.jobs.moves import Changes, Moves, describe_state
from merlina.jobs.output_folders import refuse_nested_jobs, refuse_nested_on_disk
from merlina.jobs.requests import deliver_request, pause_changes, requeue_changes, stop_changes
from merlina.jobs.resuming import (
    CompareData,
    Resumption,
    has_run_or_checkpoint,
    needs_data,
    plan_resume,
    request_start_over,
)
from merlina.jobs.run_marks import remove_run_files, write_mark
from merlina.run_folder.folder import RunFolder
from merlina.schemas.datasets.config import DatasetConfig
from merlina.schemas.jobs import PRIORITY_NUMBER, Priority
from merlina.schemas.parsing.stored_config import read_stored_config
from merlina.schemas.training.config import TrainingConfig
from merlina.storage import jobs
from merlina.storage.database import Database
from merlina.storage.jobs import JobRecord


@dataclass(frozen=True)
class JobCommands:
    """Commands on jobs. `wake` starts the supervisor's next cycle; `clock` returns epoch seconds.

    `find_files` returns the files of additional sources by their field, and raises DataError if one is
    missing. `given_ids` are those of all jobs since the start of the server.
    """

    database: Database
    moves: Moves
    executor: Executor
    runs_dir: Path
    models_dir: Path
    wake: Callable[[], None]
    compare_data: CompareData
    find_files: Callable[[DatasetConfig], dict[str, str]]
    clock: Callable[[], float] = time.time
    given_ids: set[str] = field(default_factory=set)

    def find(self, job_id: str) -> JobRecord:
        """Return a job that is not being deleted. Raises NotFoundError if there is none."""
        with self.database.read() as connection:
            record = jobs.get(connection, job_id)
        if record is None or record.deleting:
            raise NotFoundError("Job not found")
        return record

    def submit(
        self,
        config: TrainingConfig,
        priority: Priority,
        dataset_file: Path | None,
        *,
        preemptible: bool,
        memory_needed_mb: int | None,
    ) -> JobRecord:
        """Queue a new job. Its run folder, which contains the tokens, is written before its row in the database.

        Raises ConflictError if its model would be inside that of another job or contain it, and InvalidRequestError if
        the file of its data set no longer exists.
        """
        refuse_nested_on_disk(self.models_dir, self.models_dir / config.output_name)
        folder = self._new_folder()
        options = {"preemptible": preemptible, "memory_needed_mb": memory_needed_mb}
        return self._add(folder, config, priority, dataset_file, options)

    def stop(self, job_id: str) -> tuple[JobRecord, JobState]:
        """Cancel a queued job, end a paused one, or request a running one to stop; an ended one is not changed.

        Return the job and the state it was in before. Raises NotFoundError and ConflictError.
        """
        return self._end(job_id, delete=False)

    def pause(self, job_id: str) -> tuple[JobRecord, bool]:
        """Pause a queued job at once, or request a running one to write a checkpoint and end; others are not changed.

        Return the job and whether it was changed. Raises NotFoundError and ConflictError.
        """
        found = self.find(job_id)
        before, requested = self._execute_and_withdraw_start_over(
            found, lambda record: pause_changes(record, self.clock())
        )
        reach(FaultPoint.PAUSE_REQUESTED)
        self._deliver(requested)
        reach(FaultPoint.PAUSE_DELIVERED)
        self.wake()
        return requested, requested is not before

    def delete(self, job_id: str) -> None:
        """Delete a job at once; a running one is hidden and stopped, and deleted once its worker has ended.

        Raises NotFoundError and ConflictError.
        """
        self._end(job_id, delete=True)

    def clear(self) -> int:
        """Delete all jobs; return their number, not counting those that another request deletes meanwhile."""
        with self.database.read() as connection:
            job_ids = list(jobs.summaries(connection))
        return sum(self._delete_despite_conflicts(job_id) for job_id in job_ids)

    def resume(self, job_id: str, *, force: bool = False) -> tuple[JobRecord, Resumption]:
        """Queue a failed, stopped, cancelled or paused job to continue from its newest complete checkpoint.

        With `force` it starts over. Raises NotFoundError, ConflictError, InvalidRequestError, and StartOverError if it
        cannot continue without `force`.
        """
        record = self.find(job_id)
        folder = self.folder(job_id)
        _refuse_unresumable(record)
        reads_data = needs_data(record, folder, force=force)
        if reads_data:
            _check_data_is_there(record.dataset_file)
            self._check_additional_files(record)
        resumption = plan_resume(record, folder, self.compare_data, force=force)

        def changes(record: JobRecord) -> dict[str, object]:
            _refuse_unresumable(record)
            new_offset = {} if is_log_intact(record, folder) else {"log_offset": repair_end_of_log(folder)}
            return {**requeue_changes(record), "last_checkpoint": resumption.step or None, **new_offset}

        with contextlib.ExitStack() as undo:

            def before_commit(connection: Connection) -> None:
                refuse_nested_jobs(connection, record.target_dir, job_id)
                if reads_data:
                    _check_data_is_there(record.dataset_file)
                _restore_removed(folder, record)
                folder.clear_requests()
                undo.callback(request_start_over, folder, wanted=folder.start_over_file.exists())
                resumption.announce_to(folder)
                reach(FaultPoint.RESUME_PREPARED)

            _, queued = self.moves.execute_command(record, changes, before_commit)
            undo.pop_all()
        reach(FaultPoint.RESUME_QUEUED)
        self.wake()
        return queued, resumption

    def config(self, job_id: str) -> TrainingConfig:
        """Return a job's configuration without tokens. Raises NotFoundError and StoredConfigError."""
        return read_stored_config(self.find(job_id).config, job_id)

    def submission(self, job_id: str) -> tuple[TrainingConfig, Priority, bool]:
        """Return what a job was submitted with, for a retry.

        Its tokens are gone once it has completed or was cancelled before it ran.
        """
        record = self.find(job_id)
        _check_data_is_there(record.dataset_file)
        secrets = self.folder(job_id).read_secrets()
        # A job that is deleted meanwhile may have lost its tokens, and a run must not start without them.
        self.find(job_id)
        config = read_stored_config({**record.config, **secrets}, job_id)
        priority = next(name for name, number in PRIORITY_NUMBER.items() if number == record.priority)
        return config, priority, record.preemptible

    def _check_additional_files(self, record: JobRecord) -> None:
        """Raise InvalidRequestError if the file of an additional source no longer exists."""
        try:
            self.find_files(read_stored_config(record.config, record.job_id).dataset)
        except DataError as error:
            raise InvalidRequestError(f"{error.message}; restore it") from error

    def folder(self, job_id: str) -> RunFolder:
        return RunFolder(self.runs_dir / job_id)

    def _new_folder(self) -> RunFolder:
        """Create a run folder, which reserves its name as the job's id. The id of a deleted job is not given again."""
        moment = datetime.fromtimestamp(self.clock(), UTC).strftime("job_%Y%m%d_%H%M%S")
        self.runs_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        for number in count(1):
            job_id = moment if number == 1 else f"{moment}_{number}"
            # A job may be deleted in the second in which it was submitted, and clients would take the next one for it.
            if job_id in self.given_ids:
                continue
            folder = self.folder(job_id)
            try:
                folder.path.mkdir(mode=0o700)
            except FileExistsError:
                continue
            self.given_ids.add(job_id)
            return folder
        raise AssertionError

    def _add(
        self,
        folder: RunFolder,
        config: TrainingConfig,
        priority: Priority,
        dataset_file: Path | None,
        options: Mapping[str, object],
    ) -> JobRecord:
        values: dict[str, Any] = {
            **options,
            "job_id": folder.path.name,
            "priority": PRIORITY_NUMBER[priority],
            "config": config.without_secrets().model_dump(mode="json"),
            "base_model": config.base_model,
            "output_name": config.output_name,
            "target_dir": str(self.models_dir / config.output_name),
            "dataset_file": str(dataset_file) if dataset_file else None,
        }

        def check(connection: Connection) -> None:
            refuse_nested_jobs(connection, values["target_dir"])
            _check_data_is_there(values["dataset_file"])

        try:
            write_mark(folder, {**values, "created_at": self.clock()})
            folder.write_secrets(config.secrets())
            record = self.moves.add(values, check)
        except BaseException:
            self._remove_unadded(folder)
            raise
        folder.pending_file.unlink(missing_ok=True)
        self.wake()
        return record

    def _remove_unadded(self, folder: RunFolder) -> None:
        """Remove the folder of a job that could not be added, unless it was added despite the error."""
        with self.database.read() as connection:
            if jobs.get(connection, folder.path.name) is None:
                remove_run_files(folder)

    def _end(self, job_id: str, *, delete: bool) -> tuple[JobRecord, JobState]:
        found = self.find(job_id)
        deletion = {"deleting": True} if delete else {}
        before, record = self._execute_and_withdraw_start_over(
            found, lambda record: {**stop_changes(record, self.clock()), **deletion}
        )
        folder = self.folder(job_id)
        self._deliver(record)
        if record.state == "cancelled" and not before.is_ended and not has_run_or_checkpoint(record, folder):
            folder.secrets_file.unlink(missing_ok=True)
        self.wake()
        return record, before.state

    def _deliver(self, requested: JobRecord) -> None:
        """Deliver a request to a running job's worker; the supervisor repeats it if this fails.

        Meanwhile the write lock keeps a resume from clearing the run folder and the next attempt from starting.
        """
        if not requested.is_running:
            return
        with contextlib.suppress(DiskFullError), self.database.write() as connection:
            record = jobs.get(connection, requested.job_id)
            if record is not None:
                deliver_request(self.executor, self.folder(record.job_id), record)

    def _execute_and_withdraw_start_over(
        self, found: JobRecord, decide: Callable[[JobRecord], Changes]
    ) -> tuple[JobRecord, JobRecord]:
        """Carry out a command that also withdraws a queued or paused job's request to start over."""
        folder = self.folder(found.job_id)
        withdraws = False

        def changes(record: JobRecord) -> Changes:
            nonlocal withdraws
            decided = decide(record)
            withdraws = bool(decided) and record.state in ("queued", "paused") and folder.start_over_file.exists()
            restored = {"last_checkpoint": checkpoints.survey(folder.checkpoints_dir).step} if withdraws else {}
            return {**decided, **restored}

        with contextlib.ExitStack() as undo:

            def before_commit(_: Connection) -> None:
                if withdraws:
                    undo.callback(request_start_over, folder, wanted=True)
                    request_start_over(folder, wanted=False)

            outcome = self.moves.execute_command(found, changes, before_commit)
            undo.pop_all()
        return outcome

    def _delete_despite_conflicts(self, job_id: str) -> bool:
        """Delete a job even if other requests change it meanwhile; return False if one of them deletes it."""
        while True:
            try:
                self.delete(job_id)
            except NotFoundError:
                return False
            except ConflictError:
                continue
            return True


def _restore_removed(folder: RunFolder, record: JobRecord) -> None:
    """Create the run folder and its mark again if they were removed by hand."""
    if folder.mark_file.exists():
        return
    folder.path.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_mark(folder, asdict(record))
    folder.pending_file.unlink()


def _refuse_unresumable(record: JobRecord) -> None:
    """Raise ConflictError, InvalidRequestError or StoredConfigError if a job cannot be resumed, checkpoint or not."""
    if record.state not in RESUMABLE_STATES:
        raise ConflictError(
            f"Job {record.job_id} is {describe_state(record)}; "
            "only a failed, stopped, cancelled or paused job can be resumed"
        )
    read_stored_config(record.config, record.job_id)


def _check_data_is_there(dataset_file: str | None) -> None:
    """Raise InvalidRequestError if the file of the job's data set no longer exists."""
    if dataset_file and not Path(dataset_file).is_file():
        raise InvalidRequestError(f"The data set's file {dataset_file} no longer exists; upload it again")
