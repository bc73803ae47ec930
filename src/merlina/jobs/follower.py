"""Takes a run's events into the database, each exactly once: an event and its number go in by one transaction."""

from __future__ import annotations

import logging
from dataclasses import asdict, fields
from typing import Any

from merlina.jobs.fold import fold
from merlina.jobs.hub import Hub
from merlina.runs import EventLog, RunFolder, read_events
from merlina.schemas import events
from merlina.schemas.events import Event
from merlina.schemas.jobs import EndState
from merlina.storage import jobs, metrics
from merlina.storage.database import Database
from merlina.storage.jobs import JobRecord

_log = logging.getLogger(__name__)
_FIXED = {
    "number", "job_id", "config", "created_at", "deleting", "preemptible", "stop_requested_at", "pause_requested_at",
    "preempted_by",
}  # fmt: skip
_FOLDED = [field.name for field in fields(JobRecord) if field.name not in _FIXED]


def follow(database: Database, hub: Hub, record: JobRecord, folder: RunFolder) -> JobRecord:
    """Reads on from the last event taken in until the log's present end. Returns the job's new record."""
    while True:
        found, offset = read_events(folder.events_file, record.log_offset)
        if not found:
            return record
        fresh = _in_order(record, found)
        taken = _take_in(database, record, fresh, offset)
        if taken is None:
            return record
        hub.publish(taken, fresh)
        record = taken


def record_end(folder: RunFolder, state: EndState, error: str | None) -> bool:
    """Writes the last event of a worker that died without one. False while it lives, or where it wrote one itself."""
    return _append(folder, [("ended", {"state": state, "error": error})])


def record_pause(folder: RunFolder, reason: str, message: str) -> bool:
    """The same for a worker that died while it was asked to pause, with a line for the log."""
    return _append(folder, [("log", {"level": "warning", "message": message}), ("paused", {"reason": reason})])


def _append(folder: RunFolder, last_events: list[tuple[str, dict[str, Any]]]) -> bool:
    with folder.locked() as lock:
        if lock is None:
            return False
        log = EventLog(folder.events_file)
        try:
            for kind, given in last_events:
                log.append(kind, durable=True, **given)
        finally:
            log.close()
        return True


def _in_order(record: JobRecord, found: list[Event]) -> list[Event]:
    fresh = [event for event in found if event.seq > record.last_seq]
    expected = range(record.last_seq + 1, record.last_seq + 1 + len(fresh))
    if [event.seq for event in fresh] != list(expected):
        _log.error(
            "%s: its event log has a gap after event %d; going on with what is there", record.job_id, expected[0]
        )
    return fresh


def _take_in(database: Database, record: JobRecord, fresh: list[Event], offset: int) -> JobRecord | None:
    with database.write() as connection:
        current = jobs.get(connection, record.job_id)
        if current is None or current.log_offset != record.log_offset:
            return None
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
            elif isinstance(event, events.SetAside):
                jobs.move_model(connection, event.folder, event.kept_as)
        metrics.record(connection, current.number, rows)
        values = asdict(folded)
        changes = {name: values[name] for name in _FOLDED} | {"log_offset": offset}
        taken = jobs.change(connection, record.job_id, changes, while_in=[current.state])
        if folded.output_dir is not None and folded.output_dir != current.output_dir:
            jobs.forget_replaced(connection, folded.output_dir)
            taken = jobs.get(connection, record.job_id)
        return taken
