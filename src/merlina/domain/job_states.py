"""States of a job and the legal transitions between them: the one definition for server, database, CLI and page.

`jobs/moves.py` writes them: every change of a state passes through it.

An attempt passes through the states of a run in order, may skip some, and ends once. A resume is the only way back: a
failed, stopped or paused job, or a cancelled one that has a checkpoint, returns to the queue as its next attempt.
`paused` is not an end: the job waits until it is resumed, or returns to the queue by itself if it was preempted.
"""

from __future__ import annotations

from enum import Enum
from typing import Literal, get_args

RunState = Literal["initializing", "loading_model", "loading_dataset", "training", "saving", "uploading"]
EndState = Literal["completed", "failed", "stopped", "cancelled"]
JobState = Literal["queued", RunState, "paused", EndState]

RUN_STATES: tuple[RunState, ...] = get_args(RunState)
END_STATES: tuple[EndState, ...] = get_args(EndState)
WAITING_STATES: tuple[JobState, ...] = ("queued", "paused")
RESUMABLE_STATES: tuple[JobState, ...] = ("failed", "stopped", "cancelled", "paused")
# A queued job can be paused as well. After training, little work is left and the model may be partly saved.
PAUSABLE_RUN_STATES: tuple[JobState, ...] = RUN_STATES[:4]

TRANSITIONS: dict[JobState, frozenset[JobState]] = {
    "queued": frozenset({"initializing", "paused", "cancelled"}),
    **{
        state: frozenset(
            {*RUN_STATES[index + 1 :], "failed", "stopped", "completed" if state in RUN_STATES[4:] else "paused"},
        )
        for index, state in enumerate(RUN_STATES)
    },
    "paused": frozenset({"queued", "stopped", "cancelled"}),
    "completed": frozenset(),
    "failed": frozenset({"queued"}),
    "stopped": frozenset({"queued"}),
    "cancelled": frozenset({"queued"}),
}


class EndReason(Enum):
    """The reason for which the server, rather than the worker, ended a job."""

    CANCELLED_IN_QUEUE = "cancelled in the queue"
    NOT_STARTED = "could not be started"
    WORKER_DIED = "the worker died"
    STOP_REQUESTED = "a stop was requested"


END_STATE_FOR: dict[EndReason, EndState] = {
    EndReason.CANCELLED_IN_QUEUE: "cancelled",
    EndReason.NOT_STARTED: "failed",
    EndReason.WORKER_DIED: "failed",
    EndReason.STOP_REQUESTED: "stopped",
}


def is_legal(current: JobState, new: JobState) -> bool:
    """Return whether a job may move directly from one state to another."""
    return new in TRANSITIONS[current]


def is_legal_in_log(current: JobState, new: JobState) -> bool:
    """Return whether an event may move a job from one state to another.

    An event log may lack one run state in between if its line was damaged: `training` may be followed by `completed`.
    """
    return is_legal(current, new) or any(is_legal(current, state) and is_legal(state, new) for state in RUN_STATES)


def may_begin_attempt(current: JobState) -> bool:
    """Return whether the next attempt may begin in this state, as far as a log shows.

    The log lacks the transitions in between, such as a resume.
    """
    return bool(TRANSITIONS[current])
