"""The end of an attempt, recorded by the server for a worker that died without its last event."""

from __future__ import annotations

from merlina.domain.job_states import EndState
from merlina.jobs.ingest import repair_end_of_log
from merlina.jobs.moves import Moves
from merlina.jobs.resuming import available_checkpoints
from merlina.run_folder.event_log import EventLog
from merlina.run_folder.folder import RunFolder
from merlina.schemas import events
from merlina.storage.jobs import JobRecord


def record_end(record: JobRecord, folder: RunFolder, state: EndState, error: str | None) -> bool:
    """Write the last event of a worker that died without one; return False if the worker lives."""
    step = available_checkpoints(folder).step
    return _append(record, folder, events.Ended(state=state, error=error, checkpoint_step=step))


def record_pause(record: JobRecord, folder: RunFolder, reason: str, message: str) -> bool:
    """Write the last event of a worker that died before it completed a pause, after `message` as a log line."""
    paused = events.Paused(reason=reason, checkpoint_step=available_checkpoints(folder).step)
    return _append(record, folder, events.Logged(level="warning", message=message), paused)


def end_in_database(
    moves: Moves, record: JobRecord, state: EndState, error: str, *, damaged_log: RunFolder | None = None
) -> None:
    """End a job in the database alone, because its event log cannot be written.

    The next attempt continues the log of `damaged_log`, a folder from which it was removed or truncated.
    """
    log = {} if damaged_log is None else {"log_offset": repair_end_of_log(damaged_log)}
    moves.change(record, {"state": state, "error": error, "gpus": None, "ended_at": moves.clock(), **log})


def _append(record: JobRecord, folder: RunFolder, *last_events: events.KnownEvent) -> bool:
    with folder.locked() as lock:
        if lock is None:
            return False
        log = EventLog(folder.events_file, record.last_seq)
        try:
            for event in last_events:
                log.append(event)
        finally:
            log.close()
        return True
