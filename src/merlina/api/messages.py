"""What goes over the WebSocket (API document, "Message Types"). `seq`: everything up to this event was sent."""

from __future__ import annotations

from typing import Any

from merlina.jobs.requests import requested
from merlina.schemas import events
from merlina.schemas.events import Event
from merlina.storage.jobs import JobRecord

Message = dict[str, Any]

HEARTBEAT: Message = {"type": "heartbeat", "status": "ok"}


def status_update(record: JobRecord, seq: int, timestamp: float) -> Message:
    """The job's present state."""
    return {
        **_head("status_update", record.job_id, timestamp, seq),
        "status": record.state,
        "progress": record.progress,
        "current_step": record.step,
        "total_steps": record.total_steps,
        "loss": record.loss,
        "eval_loss": record.eval_loss,
        "learning_rate": record.learning_rate,
        "gpu_memory": record.gpu_memory,
        **requested(record),
    }


def lasting_message(job_id: str, event: Event) -> Message | None:
    """What no reader may miss, metrics and lines of the log; None for the rest."""
    if isinstance(event, events.Metrics):
        if event.awaits_evaluation:
            return None
        return {**_head("metrics", job_id, event.time, event.seq), "step": event.step, "metrics": event.metrics}
    if isinstance(event, events.Logged):
        return {**_head("log", job_id, event.time, event.seq), "level": event.level, "message": event.message}
    return None


def request(record: JobRecord) -> Message:
    """A stop or a pause was requested, or withdrawn, between two events of the run."""
    return {**_head("request", record.job_id, record.updated_at, record.last_seq), **requested(record)}


def last_message(record: JobRecord) -> Message:
    """The one message a job ends with: `completed`, `error`, or a last `status_update`."""
    timestamp = record.ended_at or record.updated_at
    if record.state == "completed":
        head = _head("completed", record.job_id, timestamp, record.last_seq)
        return {**head, "output_dir": record.output_dir, "final_metrics": record.final_metrics or {}}
    if record.state == "failed":
        return {**_head("error", record.job_id, timestamp, record.last_seq), "error": record.error}
    update = status_update(record, record.last_seq, timestamp)
    return {**update, "error": record.error, "output_dir": record.output_dir}


def refusal(job_id: str, timestamp: float, problem: str) -> Message:
    """The only message where the request can't be served, as for a job that does not exist."""
    return {**_head("error", job_id, timestamp, 0), "error": problem}


def _head(kind: str, job_id: str, timestamp: float, seq: int) -> Message:
    return {"type": kind, "job_id": job_id, "timestamp": timestamp, "seq": seq}
