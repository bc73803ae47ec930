"""Asking a running job to pause, and putting one that paused or ended back into the queue."""

from __future__ import annotations

from merlina.executors.protocol import Executor
from merlina.jobs.hub import Hub
from merlina.jobs.lifecycle import PAUSABLE_STATES
from merlina.runs import RunFolder
from merlina.storage import jobs
from merlina.storage.database import Database
from merlina.storage.jobs import JobRecord

ASKED_FOR = "a pause was asked for"


def ask_to_pause(
    database: Database,
    hub: Hub,
    executor: Executor,
    folder: RunFolder,
    record: JobRecord,
    now: float,
    *,
    made_way_for: str | None = None,
) -> JobRecord | None:
    """Leaves the wish in the database and the run folder; with `made_way_for` the job goes back to the queue by itself.

    None where the job is beyond the states that can be paused, or ends anyway. A person's wish outweighs another job's.
    """
    if record.stop_requested_at is not None or (record.pause_requested_at is not None and made_way_for):
        return None
    wish = {"pause_requested_at": record.pause_requested_at or now, "preempted_by": made_way_for, "updated_at": now}
    with database.write() as connection:
        asked = jobs.change(connection, record.job_id, wish, while_in=PAUSABLE_STATES)
    if asked is not None:
        reason = f"making way for {made_way_for}, which has high priority" if made_way_for else ASKED_FOR
        executor.request_pause(folder, reason)
        hub.publish(asked)
    return asked


def requeue(database: Database, hub: Hub, folder: RunFolder, record: JobRecord, now: float) -> JobRecord | None:
    """The job waits for its next attempt, by its age; None where it has moved on meanwhile."""
    folder.stop_file.unlink(missing_ok=True)
    folder.pause_file.unlink(missing_ok=True)
    values = {
        "state": "queued",
        "attempt": record.attempt + record.begun,
        "error": None,
        "ended_at": None,
        "stop_requested_at": None,
        "pause_requested_at": None,
        "preempted_by": None,
        "updated_at": now,
    }
    with database.write() as connection:
        queued = jobs.change(connection, record.job_id, values, while_in=[record.state])
    if queued is not None:
        hub.publish(queued)
    return queued
