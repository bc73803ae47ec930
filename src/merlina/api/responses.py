"""Converts records of the database and events to the shapes of the API."""

from __future__ import annotations

import time
from collections.abc import Iterable

from merlina.domain.job_states import JobState
from merlina.domain.timestamps import iso
from merlina.executors.chat_process import ChatStatus
from merlina.jobs.requests import pending_requests
from merlina.schemas.chat import ChatState
from merlina.schemas.datasets.responses import UploadEntry, UploadResponse
from merlina.schemas.events import BaseEvent, Ended, Logged, Paused, Started, StateChanged
from merlina.schemas.jobs import (
    PRIORITY_NUMBER,
    JobHistoryEntry,
    JobStatus,
    JobSummary,
    LogLine,
    MetricRow,
    Priority,
    QueueState,
    TimelineEntry,
)
from merlina.storage.jobs import JobRecord, Summary
from merlina.storage.metrics import MetricRecord
from merlina.storage.uploads import UploadRecord

# The event types that change a job's state.
TIMELINE_EVENTS = (Started, StateChanged, Paused, Ended)
_PRIORITY_NAME: dict[int, Priority] = {number: name for name, number in PRIORITY_NUMBER.items()}


def job_status(record: JobRecord, queue_position: int | None) -> JobStatus:
    queue_state: QueueState | None = "queued" if record.state == "queued" else "running" if record.is_running else None
    return JobStatus(
        job_id=record.job_id,
        status=record.state,
        progress=record.progress,
        current_step=record.step,
        total_steps=record.total_steps,
        loss=record.loss,
        eval_loss=record.eval_loss,
        learning_rate=record.learning_rate,
        gpu_memory=record.gpu_memory,
        error=record.error,
        wandb_url=record.wandb_url,
        queue_position=queue_position,
        queue_state=queue_state,
        output_dir=record.output_dir,
        base_model=record.base_model,
        output_name=record.output_name,
        priority=_PRIORITY_NAME[record.priority],
        preemptible=record.preemptible,
        created_at=iso(record.created_at),
        started_at=iso(record.started_at) if record.started_at else None,
        ended_at=iso(record.ended_at) if record.ended_at else None,
        attempt=record.attempt,
        last_checkpoint=record.last_checkpoint,
        final_metrics=record.final_metrics if record.is_ended else None,
        seq=record.last_seq,
        skipped_lines=record.skipped_lines,
        **pending_requests(record),
    )


def job_summary(summary: Summary) -> JobSummary:
    return JobSummary(status=summary.state, progress=summary.progress, **pending_requests(summary))


def history_entry(record: JobRecord) -> JobHistoryEntry:
    return JobHistoryEntry(
        job_id=record.job_id,
        status=record.state,
        progress=record.progress,
        loss=record.loss,
        eval_loss=record.eval_loss,
        last_checkpoint=record.last_checkpoint,
        created_at=iso(record.created_at),
        updated_at=iso(record.updated_at),
        output_dir=record.output_dir,
        error=record.error,
        base_model=record.base_model,
        output_name=record.output_name,
        priority=_PRIORITY_NAME[record.priority],
        preemptible=record.preemptible,
        **pending_requests(record),
    )


def metric_row(record: MetricRecord) -> MetricRow:
    return MetricRow.model_validate({**record.metrics, "step": record.step, "timestamp": iso(record.timestamp)})


def log_line(event: Logged) -> LogLine:
    return LogLine(seq=event.seq, timestamp=iso(event.time), level=event.level, message=event.message)


def timeline(record: JobRecord, events: Iterable[BaseEvent]) -> list[TimelineEntry]:
    """Return the states that a job entered, from its TIMELINE_EVENTS and the record, which has the server's changes."""
    found = [_entry("queued", record.created_at, 1)]
    last_seq = 0
    for event in events:
        last_seq = event.seq
        attempt = event.attempt if isinstance(event, Started) else found[-1].attempt
        state = _entered(event)
        if state is not None and (state != found[-1].state or attempt != found[-1].attempt):
            found.append(_entry(state, event.time, attempt))
    # A record that lags behind the event log has no newer state.
    if record.state != found[-1].state and record.last_seq >= last_seq:
        found.append(_entry(record.state, record.ended_at or record.updated_at, record.attempt))
    return found


def _entered(event: BaseEvent) -> JobState | None:
    if isinstance(event, Started):
        return "initializing"
    if isinstance(event, StateChanged | Ended):
        return event.state
    return "paused" if isinstance(event, Paused) else None


def _entry(state: JobState, since: float, attempt: int) -> TimelineEntry:
    return TimelineEntry(state=state, since=iso(since, "milliseconds"), attempt=attempt)


def upload_entry(record: UploadRecord) -> UploadEntry:
    return UploadEntry(
        dataset_id=record.dataset_id,
        filename=record.filename,
        size=record.size,
        file_format=record.file_format,
        total_rows=record.total_rows,
        created_at=iso(record.created_at),
    )


def upload_response(record: UploadRecord) -> UploadResponse:
    return UploadResponse(
        dataset_id=record.dataset_id,
        filename=record.filename,
        size=record.size,
        file_format=record.file_format,
        total_rows=record.total_rows,
    )


def chat_state(status: ChatStatus) -> ChatState:
    spec, claim = status.spec, status.claim
    return ChatState(
        state=status.state,
        job_id=spec.job_id if spec else None,
        with_base=spec.loading.with_base if spec else False,
        gpu=claim.gpu if claim else None,
        needed_mb=claim.needed_mb if claim else None,
        memory_mb=status.memory_mb,
        idle_until=iso(time.time() + status.idle_until - time.monotonic()) if status.idle_until else None,
    )
