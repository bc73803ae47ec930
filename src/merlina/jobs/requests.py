"""Stop and pause requests: their changes in the database, their delivery to the worker, and the return to the queue."""

from __future__ import annotations

from typing import Any, TypedDict

from merlina.domain.job_states import END_STATE_FOR, PAUSABLE_RUN_STATES, RUN_STATES, EndReason
from merlina.executors.protocol import Executor
from merlina.jobs.moves import Moves
from merlina.run_folder.folder import RunFolder
from merlina.storage.jobs import JobRecord, Summary


def stop_changes(record: JobRecord, now: float) -> dict[str, Any]:
    """Return what a stop changes: a waiting job ends, a running one gets a request, an ended one is not changed."""
    if record.is_running:
        return {} if record.stop_requested_at else {"stop_requested_at": now}
    if record.is_ended:
        return {}
    ran = record.state == "paused" and record.attempt_seen > 0
    reason = EndReason.STOP_REQUESTED if ran else EndReason.CANCELLED_IN_QUEUE
    return {"state": END_STATE_FOR[reason], "preempted_by": None, "ended_at": now}


def pause_changes(record: JobRecord, now: float, preempted_by: str | None = None) -> dict[str, Any]:
    """Return what a pause changes: it pauses a queued job at once and requests a running one to pause.

    With `preempted_by` the job returns to the queue by itself. Nothing changes if the job ends or pauses anyway, or is
    past the states that can be paused. A client's request takes precedence over preemption.
    """
    if record.state in ("queued", "paused") and preempted_by is None:
        return {"state": "paused", "preempted_by": None}
    requested_at = record.pause_requested_at
    can_pause = record.state in PAUSABLE_RUN_STATES and record.stop_requested_at is None
    if not can_pause or (requested_at and preempted_by):
        return {}
    return {"pause_requested_at": requested_at or now, "preempted_by": preempted_by}


def deliver_request(executor: Executor, folder: RunFolder, record: JobRecord) -> OSError | None:
    """Deliver a requested stop or pause to a running job's worker; return the error that prevented it.

    After an error, such as a full disk, the request stays in the database and the supervisor repeats the delivery.
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
    """Return the reason in words that the run's log shows."""
    if record.preempted_by is None:
        return "a pause was requested"
    return f"preempted by {record.preempted_by}, which has high priority"


class PendingRequests(TypedDict):
    """The requests to a running job that it has not completed."""

    stop_requested: bool
    pause_requested: bool


def pending_requests(record: JobRecord | Summary) -> PendingRequests:
    """Return which requests to a running job are not completed."""
    stops = record.state in RUN_STATES and record.stop_requested_at is not None
    return {"stop_requested": stops, "pause_requested": is_pause_pending(record)}


def is_pause_pending(record: JobRecord | Summary) -> bool:
    """Return whether a pause was requested that the worker can still complete, and no stop, which takes precedence."""
    wanted = record.pause_requested_at is not None and record.stop_requested_at is None
    return wanted and record.state in PAUSABLE_RUN_STATES


def requeue_changes(record: JobRecord) -> dict[str, Any]:
    """Return the changes that return a job to the queue, where it keeps its age, for its next attempt."""
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
    """Return the job to the queue; return None if it has changed meanwhile."""
    return moves.change(record, requeue_changes(record), lambda _: folder.clear_requests())
