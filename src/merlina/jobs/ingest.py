"""Applies the events of a run to the database, each exactly once: one transaction stores an event and its number."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial

from sqlalchemy import Connection
from sqlalchemy.exc import OperationalError

from merlina.errors import DiskFullError
from merlina.jobs.moves import Moves
from merlina.run_folder.event_log import EventLog, LogBlock, in_order, read_block
from merlina.run_folder.folder import RunFolder
from merlina.schemas import events
from merlina.schemas.events import Event
from merlina.storage import jobs, metrics
from merlina.storage.jobs import JobRecord

_log = logging.getLogger(__name__)
# Small enough that neither the write lock nor the interpreter is held for long.
_BLOCK_BYTES = 64 * 1024


def ingest_all(moves: Moves, record: JobRecord, folder: RunFolder) -> JobRecord:
    """Apply all events up to the current end of the log; return the job's new record."""
    while (changed := ingest_next(moves, record, folder)) is not None:
        record = changed
    return record


def ingest_next(moves: Moves, record: JobRecord, folder: RunFolder) -> JobRecord | None:
    """Apply the next block of a run's events; return None at the current end of the log.

    Lines that are not events, or that cannot be applied, are skipped and counted.
    """
    block = read_block(folder.events_file, record.log_offset, _BLOCK_BYTES)
    if block.offset == record.log_offset:
        return None
    try:
        return _ingest_block(moves, record, block)
    except (DiskFullError, OSError, OperationalError):
        raise
    except Exception:
        _log.exception("%s: a block of its event log cannot be applied; applying it line by line", record.job_id)
        return _ingest_lines(moves, record, folder, block.offset)


def _ingest_lines(moves: Moves, record: JobRecord, folder: RunFolder, end: int) -> JobRecord | None:
    current = record
    while current.log_offset < end:
        line = read_block(folder.events_file, current.log_offset, limit_bytes=1)
        try:
            changed = _ingest_block(moves, current, line)
        except (DiskFullError, OSError, OperationalError):
            raise
        except Exception as error:
            _log.warning("%s: skipped a line of its event log: %s", record.job_id, type(error).__name__)
            changed = _ingest_block(moves, current, LogBlock([], line.offset, skipped=1))
        if changed is None:
            return None
        current = changed
    return current


def _ingest_block(moves: Moves, record: JobRecord, block: LogBlock) -> JobRecord | None:
    new = in_order(block.events, record.last_seq)
    skipped = block.skipped + len(block.events) - len(new)
    if skipped:
        _log.warning("%s: skipped %d lines of its event log that are not events of this run", record.job_id, skipped)
    return moves.ingest(record, new, block.offset, skipped=skipped, write_related=partial(_write_related, new))


def _write_related(new: Sequence[Event], connection: Connection, before: JobRecord, after: JobRecord) -> None:
    """Write the metrics of the events, and update the folders of other jobs' models."""
    rows: list[metrics.MetricRecord] = []
    for event in new:
        if isinstance(event, events.Resumed):
            metrics.add_rows(connection, before.number, rows)
            metrics.delete_after(connection, before.number, event.step)
            rows = []
        elif isinstance(event, events.Metrics):
            rows.append(metrics.MetricRecord(event.step, event.time, event.metrics))
        elif isinstance(event, events.Moved):
            jobs.move_model(connection, event.folder, event.kept_as, by=before.job_id)
    metrics.add_rows(connection, before.number, rows)
    if after.output_dir is not None and after.output_dir != before.output_dir:
        jobs.take_output_dir(connection, after.output_dir, after.job_id)


def repair_end_of_log(folder: RunFolder) -> int:
    """Remove a torn last line of the log, and return the offset at which the next attempt continues it."""
    if not folder.events_file.exists():
        return 0
    EventLog(folder.events_file).close()  # opening it removes the torn line
    return folder.events_file.stat().st_size


def is_log_intact(record: JobRecord, folder: RunFolder) -> bool:
    """Return whether the log still has all ingested events. Before the first attempt there may be no log."""
    if not folder.path.is_dir():
        return False
    size = folder.events_file.stat().st_size if folder.events_file.exists() else 0
    return size >= record.log_offset
