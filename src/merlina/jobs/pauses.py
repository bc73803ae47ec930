"""Asking a job to pause, leaving such wishes where its worker finds them, and putting a job back into the queue."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from merlina.executors.protocol import Executor
from merlina.jobs.hub import Hub
from merlina.jobs.lifecycle import PAUSABLE_STATES
from merlina.runs import RunFolder
from merlina.storage import jobs
from merlina.storage.database import Database
from merlina.storage.jobs import JobRecord


def ask_to_pause(
    database: Database,
    hub: Hub,
    executor: Executor,
    folder: RunFolder,
    clock: Callable[[], float],
    *,
    made_way_for: str | None = None,
) -> JobRecord | None:
    """Pauses a waiting job, and asks a running one to; with `made_way_for` it goes back to the queue by itself.

    None where it ends or pauses anyway, or is beyond the states that can be paused. A person's wish outweighs another
    job's. `clock` gives epoch seconds.
    """
    with database.write() as connection:
        before = jobs.get(connection, folder.path.name)
        wish = _wish(before, clock(), made_way_for) if before and not before.deleting else None
        if before is None or wish is None:
            return None
        asked = jobs.change(connection, before.job_id, wish, while_in=[before.state])
    if asked is not None:
        leave_wish(executor, folder, asked)
        hub.publish(asked)
    return asked


def leave_wish(executor: Executor, folder: RunFolder, record: JobRecord) -> None:
    """Tells a running job's worker what the database says is wanted of it. May be repeated."""
    if not record.running:
        return
    if record.stop_requested_at is not None:
        executor.request_stop(folder)
    elif record.pause_requested_at is not None:
        executor.request_pause(folder, reason_to_pause(record))


def reason_to_pause(record: JobRecord) -> str:
    """Who wants it, for the run's log."""
    if record.preempted_by is None:
        return "a pause was asked for"
    return f"making way for {record.preempted_by}, which has high priority"


def is_to_pause(record: JobRecord) -> bool:
    """Whether a pause was asked for that the worker can still answer, and no stop outweighs it."""
    wanted = record.pause_requested_at is not None and record.stop_requested_at is None
    return wanted and record.state in PAUSABLE_STATES


def requeue(
    database: Database, hub: Hub, folder: RunFolder, record: JobRecord, clock: Callable[[], float]
) -> JobRecord | None:
    """The job waits for its next attempt, by its age; None where it has moved on meanwhile."""
    with database.write() as connection:
        values = {
            "state": "queued",
            "attempt": record.attempt + record.begun,
            "error": None,
            "ended_at": None,
            "stop_requested_at": None,
            "pause_requested_at": None,
            "preempted_by": None,
            "updated_at": clock(),
        }
        queued = jobs.change(connection, record.job_id, values, while_in=[record.state])
        if queued is not None:
            # Before the commit: a server killed in between finds the job as it was, not a queued one that is to stop.
            folder.stop_file.unlink(missing_ok=True)
            folder.pause_file.unlink(missing_ok=True)
    if queued is not None:
        hub.publish(queued)
    return queued


def _wish(record: JobRecord, now: float, made_way_for: str | None) -> dict[str, Any] | None:
    if record.state in ("queued", "paused") and made_way_for is None:
        return {"state": "paused", "preempted_by": None, "updated_at": now}
    asked_at = record.pause_requested_at
    if record.state not in PAUSABLE_STATES or record.stop_requested_at is not None or (asked_at and made_way_for):
        return None
    return {"pause_requested_at": asked_at or now, "preempted_by": made_way_for, "updated_at": now}
