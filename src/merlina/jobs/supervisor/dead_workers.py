"""The end of a worker that died without its last event: the server completes the run folder and writes the event."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from merlina.domain.job_states import END_STATE_FOR, EndReason
from merlina.executors.protocol import Executor
from merlina.jobs.ingest import ingest_all, is_log_intact
from merlina.jobs.moves import Moves
from merlina.jobs.output_folders import correct_moved_model
from merlina.jobs.requests import is_pause_pending, reason_to_pause
from merlina.jobs.resuming import describe_next_steps
from merlina.jobs.supervisor.last_events import end_in_database, record_end, record_pause
from merlina.jobs.supervisor.observations import Observation
from merlina.model_placement import interrupted_placement, last_placement, place
from merlina.run_folder.event_log import EventLog
from merlina.run_folder.folder import RunFolder
from merlina.schemas.events import Moved, Placed
from merlina.storage.jobs import JobRecord

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DeadWorkers:
    """Ends the attempts of dead workers in their logs, or in the database alone if there is no log."""

    moves: Moves
    executor: Executor
    grace_seconds: float

    def finalize(self, record: JobRecord, folder: RunFolder, observed: Observation) -> None:
        """End the attempt of a dead worker, unless the worker wrote its last event before it died."""
        record = ingest_all(self.moves, record, folder)
        if not record.is_running:
            return
        # A placement that failed has written events too, and the last event is numbered after them.
        _complete_placement(record, folder)
        record = ingest_all(self.moves, record, folder)
        with self.moves.database.write() as connection:
            correct_moved_model(connection, folder)
        if not is_log_intact(record, folder):
            lost = f"event log {folder.events_file} was removed or truncated"
            lost = lost if folder.path.is_dir() else f"run folder {folder.path} was removed"
            reason = f"The run ended because its {lost} while it was running"
            end_in_database(self.moves, record, END_STATE_FOR[EndReason.WORKER_DIED], reason, damaged_log=folder)
        elif is_pause_pending(record):
            message = self._pause_message(record, folder, observed)
            if record_pause(record, folder, reason_to_pause(record), message):
                ingest_all(self.moves, record, folder)
        else:
            end_reason, error = self._reason(record, folder, observed)
            if record_end(record, folder, END_STATE_FOR[end_reason], error):
                ingest_all(self.moves, record, folder)

    def _reason(self, record: JobRecord, folder: RunFolder, observed: Observation) -> tuple[EndReason, str | None]:
        if observed.start_error is not None:
            return EndReason.NOT_STARTED, observed.start_error
        if record.stop_requested_at is not None:
            return EndReason.STOP_REQUESTED, self._stop_message(record, folder, observed)
        stage = f"At step {record.step} of {record.total_steps}" if record.step else f"While {record.state}"
        cause, next_steps = self.executor.cause_of_death(folder), describe_next_steps(record, folder)
        return EndReason.WORKER_DIED, f"{stage} the worker process {cause}; {next_steps}"

    def _stop_message(self, record: JobRecord, folder: RunFolder, observed: Observation) -> str | None:
        if last_placement(folder.events_file) is not None:
            return None
        next_steps = describe_next_steps(record, folder)
        if observed.was_killed:
            return f"The run did not stop within {self.grace_seconds:g} s and was killed; {next_steps}"
        return f"The worker ended before it had saved its model; {next_steps}"

    def _pause_message(self, record: JobRecord, folder: RunFolder, observed: Observation) -> str:
        killed = f"did not pause within {self.grace_seconds:g} s and was killed" if observed.was_killed else None
        return (
            f"Paused: {reason_to_pause(record)}. The worker process {killed or self.executor.cause_of_death(folder)}; "
            f"{describe_next_steps(record, folder)}"
        )


def _complete_placement(record: JobRecord, folder: RunFolder) -> None:
    """Complete and log the placement that a dead worker had announced. Does nothing while the worker lives."""
    if not folder.events_file.exists():
        return
    with folder.locked() as lock:
        interrupted = interrupted_placement(folder.events_file) if lock is not None else None
        if interrupted is None:
            return
        log = EventLog(folder.events_file, record.last_seq)
        try:
            placing, is_move_logged = interrupted
            place(placing, _PlacementLog(log), is_move_logged=is_move_logged)
        except OSError as error:
            _log.error("%s: its finished model could not be moved to its folder: %s", folder.path.name, error)
        finally:
            log.close()


@dataclass(frozen=True)
class _PlacementLog:
    log: EventLog

    def moved(self, folder: Path, kept_as: Path) -> None:
        self.log.append(Moved(folder=str(folder), kept_as=str(kept_as)))

    def placed(self, folder: Path) -> None:
        self.log.append(Placed(folder=str(folder)))
