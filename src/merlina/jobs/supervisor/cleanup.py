"""Removal of files: what completed jobs no longer need, and everything of deleted jobs."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from merlina.checkpoints import remove_folder
from merlina.executors.protocol import Executor
from merlina.jobs.moves import Moves
from merlina.jobs.run_marks import remove_partial_model, remove_run_files
from merlina.jobs.supervisor.failure_log import FailureLog
from merlina.processes import ProcessId
from merlina.run_folder.folder import RunFolder, remove_token_cache
from merlina.storage import jobs
from merlina.storage.jobs import JobRecord


class Cleanup:
    """Removes files of completed and deleted jobs, and tries again in the next cycle if that fails."""

    def __init__(self, moves: Moves, executor: Executor, failures: FailureLog, runs_dir: Path) -> None:
        self._moves = moves
        self._executor = executor
        self._failures = failures
        self._runs_dir = runs_dir
        self._completed: set[str] = set()

    def add_completed(self, job_id: str) -> None:
        self._completed.add(job_id)

    def find_completed(self, folder_names: Iterable[str]) -> None:
        """Find completed jobs with files that their worker and the previous server did not remove before they died."""
        with self._moves.database.read() as connection:
            completed = jobs.ids_in(connection, "completed")
        names = RunFolder(self._runs_dir)
        to_remove = (names.checkpoints_dir.name, names.tokens_dir.name, names.secrets_file.name)
        for job_id in completed.intersection(folder_names):
            if any(os.path.exists(f"{self._runs_dir}/{job_id}/{name}") for name in to_remove):
                self.add_completed(job_id)

    def run(self) -> bool:
        """Remove what can be removed now; return whether anything is left."""
        for job_id in list(self._completed):
            self._clean_completed(job_id)
        with self._moves.database.read() as connection:
            deleted = jobs.waiting_for_deletion(connection)
        unfinished = [record for record in deleted if not self._delete(record)]
        return bool(unfinished or self._completed)

    def _clean_completed(self, job_id: str) -> None:
        """Remove secrets, and what a worker kept for a resume and left because it died after its last event."""
        folder = RunFolder(self._runs_dir / job_id)
        with self._failures.isolated(f"files of the completed job {folder.path} could not be removed; trying again"):
            folder.secrets_file.unlink(missing_ok=True)
            if not folder.path.exists() or not self._executor.is_alive(folder):
                remove_folder(folder.checkpoints_dir)
                remove_token_cache(folder)
                self._completed.discard(job_id)

    def _delete(self, record: JobRecord) -> bool:
        """Delete a job and its files; return False if its worker still lives, or on an error."""
        folder = RunFolder(self._runs_dir / record.job_id)
        with self._failures.isolated(f"{record.job_id} could not be deleted; trying again"):
            if self._executor.is_alive(folder, ProcessId.parse(record.worker or "")):
                return False
            try:
                # If the server is killed after this, the next one removes these files at its start.
                folder.deleted_file.touch(mode=0o600)
            except OSError:
                # Without that file the next server would list the job again, so the row is removed last.
                remove_run_files(folder)
            self._moves.remove(record)
            remove_run_files(folder)
            remove_partial_model(record.target_dir, record.job_id)
            return True
        return False
