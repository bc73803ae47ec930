"""Messages of the WebSocket `/ws/{job_id}`: a union that the field `type` discriminates."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, RootModel

from merlina.domain.job_states import JobState
from merlina.schemas.base import ResponseModel
from merlina.schemas.jobs import Requested


class _AboutJob(ResponseModel):
    type: str
    job_id: str
    timestamp: float = Field(description="Epoch seconds.")
    seq: int = Field(description="Number of an event of the run: everything up to it has been sent.")


class StatusUpdate(Requested, _AboutJob):
    """The current state of a job; also the last message of a job that was stopped or cancelled."""

    type: Literal["status_update"]
    status: JobState
    progress: float = Field(description="Fraction of the optimizer steps completed, 0 to 1.")
    current_step: int | None
    total_steps: int | None
    loss: float | None
    eval_loss: float | None
    learning_rate: float | None
    gpu_memory: float | None = Field(description="Peak GPU memory of the run, in GiB.")
    error: str | None = Field(default=None, description="Only in the last message.")
    output_dir: str | None = Field(default=None, description="Only in the last message: where the model was saved.")


class MetricsMessage(_AboutJob):
    """The metrics of one optimizer step and of the evaluation after it (names that begin with `eval_`)."""

    type: Literal["metrics"]
    step: int
    metrics: dict[str, float | None]


class LogMessage(_AboutJob):
    """A line of the run's log."""

    type: Literal["log"]
    level: Literal["info", "warning", "error"]
    message: str


class RequestMessage(Requested, _AboutJob):
    """A stop or pause was requested, or its request was withdrawn."""

    type: Literal["request"]


class CompletedMessage(_AboutJob):
    """The last message of a completed job."""

    type: Literal["completed"]
    output_dir: str | None
    final_metrics: dict[str, float | None]


class ErrorMessage(_AboutJob):
    """The last message of a failed job, or the only one if the request cannot be served (`seq` is then 0)."""

    type: Literal["error"]
    error: str | None


class Heartbeat(ResponseModel):
    """The response to any message that the client sends."""

    type: Literal["heartbeat"]
    status: Literal["ok"]


JobMessage = StatusUpdate | MetricsMessage | LogMessage | RequestMessage | CompletedMessage | ErrorMessage


class LiveMessage(RootModel[Annotated[JobMessage | Heartbeat, Field(discriminator="type")]]):
    """One message of the WebSocket `/ws/{job_id}`."""


def encode(message: JobMessage | Heartbeat) -> str:
    """Return the message as JSON. Optional fields that were not set are left out."""
    return message.model_dump_json(exclude_unset=True)
