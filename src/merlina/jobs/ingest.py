"""Takes a run's events into the database, each exactly once: an event and its number go in by one transaction."""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import partial

from sqlalchemy import Connection
from sqlalchemy.exc import OperationalError

from merlina.domain.job_states import EndState
from merlina.errors import DiskFullError
from merlina.jobs.fold import fold
from merlina.jobs.moves import Moves
from merlina.jobs.resuming import survey
from merlina.runs import EventLog, LogBlock, RunFolder, in_order, read_block
from merlina.schemas import events
from merlina.schemas.events import Event
from merlina.storage import jobs, metrics
from merlina.storage.jobs import JobRecord

_log = logging.getLogger(__name__)
# Small enough that neither the write lock nor the interpreter is held for long.
_BLOCK_BYTES = 64 * 1024


def follow(moves: Moves, record: JobRecord, folder: RunFolder) -> JobRecord:
    """Reads on from the last event taken in until the log's present end. Returns the job's new record."""
    while (taken := follow_on(moves, record, folder)) is not None:
        record = taken
    return record


def follow_on(moves: Moves, record: JobRecord, folder: RunFolder) -> JobRecord | None:
    """Take in the next block of a run's events; return None at the log's present end.

    Lines that are no events, or that nothing can be made of, are skipped and counted.
    """
    block = read_block(folder.events_file, record.log_offset, _BLOCK_BYTES)
    if block.offset == record.log_offset:
        return None
    try:
        return _take_in(moves, record, block)
    except (DiskFullError, OSError, OperationalError):
        raise
    except Exception:
        _log.exception("%s: a part of its event log cannot be taken in; going on line by line", record.job_id)
        return _line_by_line(moves, record, folder, block.offset)


def _line_by_line(moves: Moves, record: JobRecord, folder: RunFolder, end: int) -> JobRecord | None:
    current = record
    while current.log_offset < end:
        line = read_block(folder.events_file, current.log_offset, limit_bytes=1)
        try:
            taken = _take_in(moves, current, line)
        except (DiskFullError, OSError, OperationalError):
            raise
        except Exception as error:
            _log.warning("%s: skipped a line of its event log: %s", record.job_id, type(error).__name__)
            taken = _take_in(moves, current, LogBlock([], line.offset, skipped=1))
        if taken is None:
            return None
        current = taken
    return current


def _take_in(moves: Moves, record: JobRecord, block: LogBlock) -> JobRecord | None:
    fresh = in_order(block.events, record.last_seq)
    skipped = block.skipped + len(block.events) - len(fresh)
    if skipped:
        _log.warning("%s: skipped %d lines of its event log that are no events of it", record.job_id, skipped)
    return moves.take_in(record, fresh, block.offset, partial(_apply, fresh, skipped), _settle)


def record_end(record: JobRecord, folder: RunFolder, state: EndState, error: str | None) -> bool:
    """Writes the last event of a worker that died without one. False while it lives, or where it wrote one itself."""
    return _append(record, folder, events.Ended(state=state, error=error, checkpoint_step=survey(folder).step))


def end_without_log(moves: Moves, record: JobRecord, folder: RunFolder, state: EndState, error: str) -> None:
    """End a job in the database alone, since its event log was removed or cut. Its next attempt continues that log."""
    ended = {"state": state, "error": error, "gpus": None, "ended_at": moves.clock(), "log_offset": end_of_log(folder)}
    moves.change(record, ended)


def end_of_log(folder: RunFolder) -> int:
    """Where the next attempt writes on in the log of a job that does not run: after its last whole line."""
    if not folder.events_file.exists():
        return 0
    EventLog(folder.events_file).close()  # without a torn last line
    return folder.events_file.stat().st_size


def has_log(record: JobRecord, folder: RunFolder) -> bool:
    """Whether the log is there, up to the last event taken in; it may lack only before the first attempt."""
    if not folder.path.is_dir():
        return False
    size = folder.events_file.stat().st_size if folder.events_file.exists() else 0
    return size >= record.log_offset


def record_pause(record: JobRecord, folder: RunFolder, reason: str, message: str) -> bool:
    """The same for a worker that died while it was asked to pause, with a line for the log."""
    paused = events.Paused(reason=reason, checkpoint_step=survey(folder).step)
    return _append(record, folder, events.Logged(level="warning", message=message), paused)


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


def _apply(fresh: list[Event], skipped: int, connection: Connection, current: JobRecord) -> JobRecord:
    """Return the record after the events; write the metrics and the other jobs' folders that they change."""
    folded = current
    rows: list[metrics.MetricRecord] = []
    for event in fresh:
        folded = fold(folded, event)
        if isinstance(event, events.Resumed):
            metrics.record(connection, current.number, rows)
            metrics.forget_after(connection, current.number, event.step)
            rows = []
        elif isinstance(event, events.Metrics):
            rows.append(metrics.MetricRecord(event.step, event.time, event.metrics))
        elif isinstance(event, events.Moved):
            jobs.move_model(connection, event.folder, event.kept_as, by=current.job_id)
    metrics.record(connection, current.number, rows)
    return replace(folded, skipped_lines=folded.skipped_lines + skipped)


def _settle(connection: Connection, before: JobRecord, after: JobRecord) -> None:
    if after.output_dir is not None and after.output_dir != before.output_dir:
        jobs.claim_output_dir(connection, after.output_dir, after.job_id)
