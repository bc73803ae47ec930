"""The lines of a run's event log: numbered, append-only, the one truth of a run.

Every line is one JSON object with `seq` (1, 2, 3 … without a gap over all attempts of a run), `time` (epoch seconds)
and `type`. Only one process writes at a time: the worker, or, once it is dead, the server that records its death.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from merlina.domain.job_states import EndState, JobState

# What every database stores as an integer.
_Count = Annotated[int, Field(ge=0, le=2**31 - 1)]


def _finite_only(figures: dict[str, float | None]) -> dict[str, float | None]:
    return {name: value if value is not None and math.isfinite(value) else None for name, value in figures.items()}


# Neither JSON nor a chart has infinity or NaN.
_Figures = Annotated[dict[str, float | None], AfterValidator(_finite_only)]


class BaseEvent(BaseModel):
    """What each line carries."""

    model_config = ConfigDict(frozen=True, extra="ignore", ser_json_inf_nan="null")

    seq: int = Field(ge=1, le=2**31 - 1)
    # Up to the last year that a date can have.
    time: float = Field(ge=0, lt=253_402_300_000, allow_inf_nan=False, description="epoch seconds")


class Started(BaseEvent):
    """First line of an attempt: which process runs it. Its signal handlers are set when this is written."""

    type: Literal["started"] = "started"
    attempt: _Count
    pid: int
    process: str | None = Field(default=None, description="its identity, as merlina.processes writes it")
    versions: dict[str, str] = Field(default_factory=dict)


class Resumed(BaseEvent):
    """The attempt continues after `step`; 0 is the start. Whatever was recorded after it no longer counts.

    Where the server had announced another step, that is `announced_step`, and `reason` says why it is not used.
    """

    type: Literal["resumed"] = "resumed"
    step: _Count
    announced_step: _Count | None = None
    reason: str | None = None


class StateChanged(BaseEvent):
    """The run entered a state."""

    type: Literal["state"] = "state"
    state: JobState
    output_dir: str | None = None


class Progress(BaseEvent):
    """An optimizer step was finished; at most about ten of these a second are written."""

    type: Literal["progress"] = "progress"
    step: _Count
    total_steps: _Count


class Metrics(BaseEvent):
    """The figures of one optimizer step and of the evaluation after it (names begin with `eval_`).

    With `awaits_evaluation` another line of this step follows, which holds these figures again with the evaluation's.
    """

    type: Literal["metrics"] = "metrics"
    step: _Count
    metrics: _Figures
    awaits_evaluation: bool = False


class Checkpointed(BaseEvent):
    """A checkpoint is complete on the disk."""

    type: Literal["checkpoint"] = "checkpoint"
    step: _Count
    path: str


class Placing(BaseEvent):
    """The finished model lies in `staged`, complete, and is about to become `folder`: only renames are left to do.

    `identity` recognizes it under either name. What lies in `folder` now is to become `kept_as`. `step` is the
    optimizer step after which training ended; `final_metrics` are None where it was stopped. What a crash after this
    event leaves undone is done from it, see `merlina.placing`.
    """

    type: Literal["placing"] = "placing"
    folder: str
    staged: str
    identity: str
    kept_as: str | None = None
    step: _Count
    final_metrics: dict[str, float | None] | None = None


class Placed(BaseEvent):
    """The finished model is in `folder`."""

    type: Literal["placed"] = "placed"
    folder: str


class SetAside(BaseEvent):
    """The model that lay in `folder` is in `kept_as` from now on: it made room for this run's."""

    type: Literal["set_aside"] = "set_aside"
    folder: str
    kept_as: str


class Logged(BaseEvent):
    """A line for people; `warning` ones need their attention."""

    type: Literal["log"] = "log"
    level: Literal["info", "warning", "error"]
    message: str


class Linked(BaseEvent):
    """The run can be watched at an outside address as well."""

    type: Literal["link"] = "link"
    wandb_url: str


class Paused(BaseEvent):
    """Last line of an attempt that is to continue later: nothing was saved but its checkpoint.

    `checkpoint_step` is the newest complete checkpoint, as in `Ended`.
    """

    type: Literal["paused"] = "paused"
    reason: str
    checkpoint_step: _Count | None = None


class Ended(BaseEvent):
    """Last line of an attempt. `checkpoint_step` is the newest complete checkpoint, which a resume continues from."""

    type: Literal["ended"] = "ended"
    state: EndState
    error: str | None = None
    output_dir: str | None = None
    checkpoint_step: _Count | None = None
    final_metrics: _Figures = Field(default_factory=dict)


class Unknown(BaseEvent):
    """A line of another version's worker: it has its number and changes nothing."""

    type: str


KnownEvent = Annotated[
    Started
    | Resumed
    | StateChanged
    | Progress
    | Metrics
    | Checkpointed
    | Placing
    | Placed
    | SetAside
    | Logged
    | Linked
    | Paused
    | Ended,
    Field(discriminator="type"),
]
Event = KnownEvent | Unknown
EVENT: TypeAdapter[KnownEvent] = TypeAdapter(KnownEvent)


def parse_event(line: bytes) -> Event | None:
    """Return the event; None if the line is none, or one of a known type with fields of other types."""
    try:
        return EVENT.validate_json(line)
    except ValidationError as error:
        if error.errors(include_url=False, include_input=False)[0]["type"] != "union_tag_invalid":
            return None
    try:
        return Unknown.model_validate_json(line)
    except ValidationError:
        return None


def event_line(seq: int, time: float, kind: str, fields: dict[str, Any]) -> bytes:
    """One validated line of the log, with its newline. Raises pydantic.ValidationError on a field that can't be."""
    event = EVENT.validate_python({"seq": seq, "time": time, "type": kind, **fields})
    return EVENT.dump_json(event, exclude_none=False) + b"\n"
