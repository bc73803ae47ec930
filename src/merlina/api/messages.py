"""WebSocket messages, built from a job's record and its events."""

from __future__ import annotations

from typing import Any

from merlina.jobs.requests import pending_requests
from merlina.schemas import events
from merlina.schemas.events import Event
from merlina.schemas.messages import (
    CompletedMessage,
    ErrorMessage,
    Heartbeat,
    JobMessage,
    LogMessage,
    MetricsMessage,
    RequestMessage,
    StatusUpdate,
)
from merlina.storage.jobs import JobRecord

HEARTBEAT = Heartbeat(type="heartbeat", status="ok")


def status_update(record: JobRecord, seq: int, timestamp: float, **at_end: Any) -> StatusUpdate:
    """Return the job's current state. `at_end` are the fields that only a last message has."""
    return StatusUpdate(
        type="status_update",
        job_id=record.job_id,
        timestamp=timestamp,
        seq=seq,
        status=record.state,
        progress=record.progress,
        current_step=record.step,
        total_steps=record.total_steps,
        loss=record.loss,
        eval_loss=record.eval_loss,
        learning_rate=record.learning_rate,
        gpu_memory=record.gpu_memory,
        **pending_requests(record),
        **at_end,
    )


def event_message(job_id: str, event: Event) -> MetricsMessage | LogMessage | None:
    """Return the message of a metrics or log event, which every subscriber receives; None for other events."""
    head: dict[str, Any] = {"job_id": job_id, "timestamp": event.time, "seq": event.seq}
    if isinstance(event, events.Metrics) and not event.awaits_evaluation:
        return MetricsMessage(type="metrics", step=event.step, metrics=event.metrics, **head)
    if isinstance(event, events.Logged):
        return LogMessage(type="log", level=event.level, message=event.message, **head)
    return None


def request_message(record: JobRecord) -> RequestMessage:
    """Return the requests that are open now; they change between two events of the run."""
    return RequestMessage(
        type="request",
        job_id=record.job_id,
        timestamp=record.updated_at,
        seq=record.last_seq,
        **pending_requests(record),
    )


def last_message(record: JobRecord) -> JobMessage:
    """Return the message that an ended job ends with: `completed`, `error`, or a last `status_update`."""
    timestamp = record.ended_at or record.updated_at
    head: dict[str, Any] = {"job_id": record.job_id, "timestamp": timestamp, "seq": record.last_seq}
    if record.state == "completed":
        metrics = record.final_metrics or {}
        return CompletedMessage(type="completed", output_dir=record.output_dir, final_metrics=metrics, **head)
    if record.state == "failed":
        return ErrorMessage(type="error", error=record.error, **head)
    return status_update(record, record.last_seq, timestamp, error=record.error, output_dir=record.output_dir)


def refusal(job_id: str, timestamp: float, problem: str) -> ErrorMessage:
    """Return the only message of a connection that cannot be served, for example because the job does not exist."""
    return ErrorMessage(type="error", job_id=job_id, timestamp=timestamp, seq=0, error=problem)
