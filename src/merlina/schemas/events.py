"""The events of a run, one JSON object per line of its append-only event log.

Every line has `seq`, `time` (epoch seconds) and `type`. `seq` increases over all attempts of a run; the numbers of the
server's own transitions are missing from the log. Only one process writes at a time: the worker or, once it is dead,
the server that records its death.
"""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from merlina.domain.job_states import EndState, JobState

# The range that every database stores as an integer.
_Count = Annotated[int, Field(ge=0, le=2**31 - 1)]


def _finite_only(values: dict[str, float | None]) -> dict[str, float | None]:
    return {name: value if value is not None and math.isfinite(value) else None for name, value in values.items()}


LogLevel = Literal["info", "warning", "error"]

# Neither JSON nor a chart has infinity or NaN.
_MetricValues = Annotated[dict[str, float | None], AfterValidator(_finite_only)]


class BaseEvent(BaseModel):
    """The fields of every event. `EventLog.append` assigns `seq` and `time`; each line of a log has both."""

    model_config = ConfigDict(frozen=True, extra="ignore", ser_json_inf_nan="null")

    # Whether the writer waits until the event is on disk.
    is_durable: ClassVar[bool] = False

    seq: int = Field(default=0, ge=1, le=2**31 - 1)
    # Up to the last year that a date can have.
    time: float = Field(default=0.0, ge=0, lt=253_402_300_000, allow_inf_nan=False, description="epoch seconds")
    type: str


class DurableEvent(BaseEvent):
    """An event that a resume or a restarted server depends on."""

    is_durable: ClassVar[bool] = True


class Started(DurableEvent):
    """First event of an attempt: the process that runs it. Its signal handlers are set by then."""

    type: Literal["started"] = "started"
    attempt: _Count
    pid: int
    process: str | None = Field(default=None, description="the process's identity, as merlina.processes writes it")
    versions: dict[str, str] = Field(default_factory=dict)


class Resumed(DurableEvent):
    """The attempt continues after `step`; 0 is the beginning. Metrics recorded after that step are discarded.

    `announced_step` is the step that the server had announced, if it differs, and `reason` states why.
    """

    type: Literal["resumed"] = "resumed"
    step: _Count
    announced_step: _Count | None = None
    reason: str | None = None


class StateChanged(DurableEvent):
    """The run entered a state."""

    type: Literal["state"] = "state"
    state: JobState
    output_dir: str | None = None


class Progress(BaseEvent):
    """An optimizer step was completed. At most about ten of these are written per second."""

    type: Literal["progress"] = "progress"
    step: _Count
    total_steps: _Count


class Metrics(BaseEvent):
    """The metrics of one optimizer step and of the evaluation after it (names begin with `eval_`).

    If `awaits_evaluation`, another event for this step follows, which repeats these metrics and adds the evaluation's.
    """

    type: Literal["metrics"] = "metrics"
    step: _Count
    metrics: _MetricValues
    awaits_evaluation: bool = False


class Checkpointed(DurableEvent):
    """A checkpoint is complete on disk."""

    type: Literal["checkpoint"] = "checkpoint"
    step: _Count
    path: str


class Placing(DurableEvent):
    """The finished model is complete in `staged` and is about to be renamed to `folder`.

    `identity` identifies it under either name. The current content of `folder` will be moved to `kept_as`. `step` is
    the optimizer step after which training ended; `final_metrics` is None if it was stopped. After a crash,
    `merlina.model_placement` completes the renames from this event.
    """

    type: Literal["placing"] = "placing"
    folder: str
    staged: str
    identity: str
    kept_as: str | None = None
    step: _Count
    final_metrics: dict[str, float | None] | None = None


class Placed(DurableEvent):
    """The finished model is in `folder`."""

    type: Literal["placed"] = "placed"
    folder: str


class Moved(DurableEvent):
    """The older model in `folder` was moved to `kept_as`, because this run's model takes its place.

    Earlier versions wrote the type `set_aside`.
    """

    type: Literal["moved", "set_aside"] = "moved"
    folder: str
    kept_as: str


class Logged(BaseEvent):
    """A message for the user; warnings and errors need attention."""

    type: Literal["log"] = "log"
    level: LogLevel
    message: str


class Linked(BaseEvent):
    """The address of the run in Weights & Biases."""

    type: Literal["link"] = "link"
    wandb_url: str


class Paused(DurableEvent):
    """Last event of an attempt that will be resumed. Only its checkpoint was saved.

    `checkpoint_step` is the step of the newest complete checkpoint, as in `Ended`.
    """

    type: Literal["paused"] = "paused"
    reason: str
    checkpoint_step: _Count | None = None


class Ended(DurableEvent):
    """Last event of an attempt.

    `checkpoint_step` is the step of the newest complete checkpoint, from which a resume continues.
    """

    type: Literal["ended"] = "ended"
    state: EndState
    error: str | None = None
    output_dir: str | None = None
    checkpoint_step: _Count | None = None
    final_metrics: _MetricValues = Field(default_factory=dict)


class Unknown(BaseEvent):
    """An event that another version's worker wrote. It has a number and changes nothing."""


KnownEvent = Annotated[
    Started
    | Resumed
    | StateChanged
    | Progress
    | Metrics
    | Checkpointed
    | Placing
    | Placed
    | Moved
    | Logged
    | Linked
    | Paused
    | Ended,
    Field(discriminator="type"),
]
Event = KnownEvent | Unknown
EVENT: TypeAdapter[KnownEvent] = TypeAdapter(KnownEvent)


def parse_event(line: bytes) -> Event | None:
    """Return the event, or None if the line is not a valid event."""
    try:
        return _numbered(EVENT.validate_json(line))
    except ValidationError as error:
        if error.errors(include_url=False, include_input=False)[0]["type"] != "union_tag_invalid":
            return None
    try:
        return _numbered(Unknown.model_validate_json(line))
    except ValidationError:
        return None


def _numbered(event: Event) -> Event | None:
    return event if {"seq", "time"} <= event.model_fields_set else None
