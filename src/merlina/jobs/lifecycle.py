"""Legal moves of a job, as data; and the end state each cause leads to.

A job moves forward through the states of its run and ends once. The one way back is a resume: a failed or stopped
job, or a cancelled one that has a checkpoint, goes into the queue again as its next attempt. A pause is no end: a job
waits in it until it is resumed, or goes back to the queue by itself where it made way for another.
"""

from __future__ import annotations

from enum import Enum

from merlina.schemas.jobs import EndState, JobState

_RUN: tuple[JobState, ...] = (
    "initializing",
    "loading_model",
    "loading_dataset",
    "training",
    "saving",
    "uploading",
)
RUNNING_STATES: tuple[JobState, ...] = _RUN
RESUMABLE_STATES: tuple[JobState, ...] = ("failed", "stopped", "cancelled", "paused")
# Later there is little left to do, and a model half saved.
PAUSABLE_STATES: tuple[JobState, ...] = _RUN[:4]

MOVES: dict[JobState, frozenset[JobState]] = {
    "queued": frozenset({"initializing", "paused", "cancelled"}),
    **{
        state: frozenset(
            {*_RUN[index + 1 :], "failed", "stopped", "completed" if state in _RUN[4:] else "paused"},
        )
        for index, state in enumerate(_RUN)
    },
    "paused": frozenset({"queued", "stopped", "cancelled"}),
    "completed": frozenset(),
    "failed": frozenset({"queued"}),
    "stopped": frozenset({"queued"}),
    "cancelled": frozenset({"queued"}),
}


class Cause(Enum):
    """Why a job ended, where the server, not the worker, decides it."""

    CANCELLED_IN_QUEUE = "cancelled in the queue"
    NOT_STARTED = "could not be started"
    WORKER_DIED = "the worker died"
    STOP_WAS_ASKED = "a stop was asked for"


END_STATE: dict[Cause, EndState] = {
    Cause.CANCELLED_IN_QUEUE: "cancelled",
    Cause.NOT_STARTED: "failed",
    Cause.WORKER_DIED: "failed",
    Cause.STOP_WAS_ASKED: "stopped",
}


def may_move(current: JobState, new: JobState) -> bool:
    """Whether a job may go from one state straight to another."""
    return new in MOVES[current]
