"""Asking a job to pause, leaving such wishes where its worker finds them, and putting a job back into the queue."""

from __future__ import annotations

from typing import Any, TypedDict

from merlina.domain.job_states import PAUSABLE_STATES, RUN_STATES
from merlina.executors.protocol import Executor
from merlina.jobs.moves import Moves
from merlina.runs import RunFolder
from merlina.storage.jobs import JobRecord, Summary


def pause_changes(record: JobRecord, now: float, preempted_by: str | None = None) -> dict[str, Any]:
    """Return what a pause changes: it holds a waiting job back and asks a running one to pause.

    With `preempted_by` the job returns to the queue by itself. Nothing is changed if the job ends or pauses anyway, or
    is beyond the states that can be paused. A person's request outweighs another job's.
    """
    if record.state in ("queued", "paused") and preempted_by is None:
        return {"state": "paused", "preempted_by": None}
    asked_at = record.pause_requested_at
    if record.state not in PAUSABLE_STATES or record.stop_requested_at is not None or (asked_at and preempted_by):
        return {}
    return {"pause_requested_at": asked_at or now, "preempted_by": preempted_by}


def deliver_request(executor: Executor, folder: RunFolder, record: JobRecord) -> OSError | None:
    """Pass a requested stop or pause on to a running job's worker; return the error that prevented it. May be repeated.

    On a full disk, for example, the request waits in the database; the supervisor repeats this until it is passed on.
    """
    if not record.is_running:
        return None
    try:
        if record.stop_requested_at is not None:
            executor.request_stop(folder)
        elif record.pause_requested_at is not None:
            executor.request_pause(folder, reason_to_pause(record))
    except OSError as error:
        return error
    return None


def reason_to_pause(record: JobRecord) -> str:
    """Who wants it, for the run's log."""
    if record.preempted_by is None:
        return "a pause was requested"
    return f"preempted by {record.preempted_by}, which has high priority"


class Requested(TypedDict):
    """What a running job was asked to do and has not done yet."""

    stop_requested: bool
    pause_requested: bool


def requested(record: JobRecord | Summary) -> Requested:
    """Return which request to a running job is still open."""
    stops = record.state in RUN_STATES and record.stop_requested_at is not None
    return {"stop_requested": stops, "pause_requested": is_to_pause(record)}


def is_to_pause(record: JobRecord | Summary) -> bool:
    """Whether a pause was asked for that the worker can still answer, and no stop outweighs it."""
    wanted = record.pause_requested_at is not None and record.stop_requested_at is None
    return wanted and record.state in PAUSABLE_STATES


def requeue_changes(record: JobRecord) -> dict[str, Any]:
    """Return what puts a job back into the queue, by its age, for its next attempt."""
    return {
        "state": "queued",
        "attempt": record.attempt + record.has_begun,
        "error": None,
        "ended_at": None,
        "stop_requested_at": None,
        "pause_requested_at": None,
        "preempted_by": None,
    }


def requeue(moves: Moves, folder: RunFolder, record: JobRecord) -> JobRecord | None:
    """Put the job back into the queue; return None if it has moved on meanwhile."""
    return moves.change(record, requeue_changes(record), lambda _: folder.clear_requests())
