"""The last event of an attempt, written by the server for a worker that died without one."""

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


def end_without_log(moves: Moves, record: JobRecord, folder: RunFolder, state: EndState, error: str) -> None:
    """End a job in the database alone, after its event log was removed or truncated. The next attempt continues it."""
    ended = {"state": state, "error": error, "gpus": None, "ended_at": moves.clock()}
    moves.change(record, {**ended, "log_offset": repair_end_of_log(folder)})


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
