"""Jobs: submission, state, metrics, commands and deletion (docs/api.md, "Jobs")."""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query

from merlina.api.loading_code import read_loading_code
from merlina.api.long_requests import run_in_thread
from merlina.api.responses import (
    TIMELINE_EVENTS,
    history_entry,
    job_status,
    job_summary,
    log_line,
    metric_row,
    timeline,
)
from merlina.api.services import Services, ServicesDep
from merlina.domain.job_states import JobState
from merlina.errors import InvalidRequestError
from merlina.run_folder.event_log import find_events
from merlina.schemas.events import Logged
from merlina.schemas.jobs import (
    JobAction,
    JobCreated,
    JobHistory,
    JobLogs,
    JobMetrics,
    JobsCleared,
    JobStatus,
    JobSummary,
    JobTimeline,
    LoadingCode,
    Priority,
    StopResponse,
)
from merlina.schemas.training.config import TrainingConfig
from merlina.storage import jobs, metrics
from merlina.storage.jobs import JobRecord

router = APIRouter(tags=["jobs"])


@router.post("/train")
async def train(
    config: TrainingConfig, services: ServicesDep, priority: Priority = "normal", preemptible: bool = False
) -> JobCreated:
    """Check a configuration and queue a job.

    A preemptible low-priority job is paused while a high-priority job needs its slot or GPU, and is then queued again.
    """
    prefix = "Training spell cast!"
    return await run_in_thread(
        services.long_request_threads, _submit, services, config, priority, prefix, preemptible=preemptible
    )


@router.get("/status/{job_id}")
def status(job_id: str, services: ServicesDep) -> JobStatus:
    """Return the state and progress of a job."""
    record = services.commands.find(job_id)
    return job_status(record, _position(services, record))


@router.get("/jobs")
def list_jobs(services: ServicesDep) -> dict[str, JobSummary]:
    """Return state and progress of every job, newest first."""
    with services.database.read() as connection:
        found = jobs.summaries(connection)
    return {job_id: job_summary(summary) for job_id, summary in found.items()}


@router.get("/jobs/history")
def history(
    services: ServicesDep,
    status: JobState | None = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 50,
    offset: Annotated[int, Query(ge=0, le=2**31)] = 0,
) -> JobHistory:
    """List all jobs by page, newest first."""
    with services.database.read() as connection:
        records, total = jobs.page(connection, status, limit, offset)
    return JobHistory(jobs=[history_entry(record) for record in records], count=len(records), total=total)


@router.get("/jobs/{job_id}/metrics")
def job_metrics(
    job_id: str,
    services: ServicesDep,
    since_step: Annotated[int | None, Query(ge=0, le=2**31)] = None,
    until_step: Annotated[int | None, Query(ge=0, le=2**31)] = None,
    limit: Annotated[int | None, Query(ge=1, le=2**31)] = None,
    max_points: Annotated[int | None, Query(ge=1, le=100_000)] = None,
) -> JobMetrics:
    """Return all recorded metrics, one row per optimizer step; step 0 is the evaluation before training.

    `max_points` downsamples the rows for a chart: all evaluations if they fit, and other rows evenly over the steps.
    """
    record = services.commands.find(job_id)
    with services.database.read() as connection:
        rows = metrics.rows(
            connection,
            record.number,
            since_step=since_step,
            until_step=until_step,
            limit=limit,
            max_points=max_points,
        )
        total = metrics.total(connection, record.number)
    return JobMetrics(job_id=job_id, metrics=[metric_row(row) for row in rows], count=len(rows), total=total)


@router.get("/jobs/{job_id}/config")
def job_config(job_id: str, services: ServicesDep) -> dict[str, Any]:
    """Return the configuration of a job without its tokens."""
    return services.commands.config(job_id).model_dump(mode="json")


@router.get("/jobs/{job_id}/logs")
def job_logs(job_id: str, services: ServicesDep, limit: Annotated[int, Query(ge=1, le=10_000)] = 1000) -> JobLogs:
    """Return the newest lines of the run's log, oldest first."""
    services.commands.find(job_id)
    newest = deque(find_events(services.commands.folder(job_id).events_file, Logged), maxlen=limit)
    lines = [log_line(event) for event in newest]
    return JobLogs(job_id=job_id, logs=lines, count=len(lines))


@router.get("/jobs/{job_id}/loading-code")
def loading_code(job_id: str, services: ServicesDep) -> LoadingCode:
    """Return the Python code that loads the job's model from where it is now, as its model card shows it."""
    record = services.commands.find(job_id)
    code = read_loading_code(record.target_dir, record.output_dir)
    return LoadingCode(job_id=job_id, output_dir=str(record.output_dir), code=code)


@router.get("/jobs/{job_id}/timeline")
def job_timeline(job_id: str, services: ServicesDep) -> JobTimeline:
    """Return the states that a job entered in all its attempts, with their times."""
    record = services.commands.find(job_id)
    events = find_events(services.commands.folder(job_id).events_file, *TIMELINE_EVENTS)
    states = timeline(record, events)
    return JobTimeline(job_id=job_id, states=states, count=len(states))


@router.post("/jobs/{job_id}/stop")
def stop(job_id: str, services: ServicesDep) -> StopResponse:
    """Cancel a waiting job, or stop a running one after its current optimizer step and save the model."""
    record, before = services.commands.stop(job_id)
    if before == "queued":
        message = f"Job {job_id} removed from queue"
        return StopResponse(status="success", message=message, job_id=job_id, was_queued=True)
    if before == "paused":
        kept = f"; the checkpoint at step {record.last_checkpoint} can be resumed" if record.last_checkpoint else ""
        message = f"Job {job_id} was paused and is now {record.state}. No model was saved{kept}."
        return StopResponse(status="success", message=message, job_id=job_id, was_queued=False)
    if record.is_ended:
        message = f"Job {job_id} is already {record.state}; there is nothing to stop"
        return StopResponse(status="warning", message=message, job_id=job_id, was_queued=False)
    message = f"Stop request sent to job {job_id}. Training will stop after current step."
    return StopResponse(status="success", message=message, job_id=job_id, was_queued=False)


@router.post("/jobs/{job_id}/pause")
def pause(job_id: str, services: ServicesDep) -> JobAction:
    """Pause a waiting job at once, or a running one, which writes a checkpoint and releases its GPU."""
    record, is_accepted = services.commands.pause(job_id)
    if not is_accepted:
        stopping = record.is_running and record.stop_requested_at is not None
        message = f"Job {job_id} is {'being stopped' if stopping else record.state}; there is nothing to pause"
        return JobAction(status="warning", message=message, job_id=job_id)
    if record.state == "paused":
        message = f"Job {job_id} is paused; POST /jobs/{job_id}/resume continues it"
    else:
        message = f"Pause request sent to job {job_id}. It will write a checkpoint after its current step."
    return JobAction(status="success", message=message, job_id=job_id)


@router.post("/jobs/{job_id}/resume")
async def resume(job_id: str, services: ServicesDep, force: bool = False) -> JobCreated:
    """Queue a failed, stopped, cancelled or paused job to continue from its newest complete checkpoint.

    A failed, stopped or paused job that never had a checkpoint starts at step 1. The response is 409 if none of its
    checkpoints is complete, or if the data set has changed since. With `force`, the run ignores all checkpoints and
    starts over at step 1.
    """
    return await run_in_thread(services.long_request_threads, _resume, services, job_id, force=force)


@router.post("/jobs/{job_id}/retry")
async def retry(job_id: str, services: ServicesDep) -> JobCreated:
    """Check the configuration of a job again and queue a new job with it.

    The tokens of a completed job have been deleted; the checks report what needs one.
    """
    return await run_in_thread(services.long_request_threads, _retry, services, job_id)


@router.delete("/jobs/{job_id}")
def delete(job_id: str, services: ServicesDep) -> JobAction:
    """Delete a job and its metrics, after stopping it if it runs. Finished models are kept."""
    services.commands.delete(job_id)
    return JobAction(status="success", message=f"Job {job_id} deleted successfully", job_id=job_id)


@router.delete("/jobs")
def clear(services: ServicesDep) -> JobsCleared:
    """Delete all jobs. Finished models are kept."""
    deleted = services.commands.clear()
    jobs = "job" if deleted == 1 else "jobs"
    return JobsCleared(message=f"Cleared all jobs ({deleted} {jobs} deleted)", deleted_count=deleted)


def _retry(services: Services, job_id: str) -> JobCreated:
    config, priority, preemptible = services.commands.submission(job_id)
    return _submit(services, config, priority, f"Retry of {job_id}.", preemptible=preemptible)


def _resume(services: Services, job_id: str, *, force: bool) -> JobCreated:
    record, resumption = services.commands.resume(job_id, force=force)
    return _queued(services, record, resumption.message, list(resumption.warnings))


def _submit(
    services: Services, config: TrainingConfig, priority: Priority, prefix: str, *, preemptible: bool
) -> JobCreated:
    report = services.preflight.check(config)
    if report.errors:
        raise InvalidRequestError("Training configuration validation failed", report.findings)
    needed_mb = report.memory.needed_mb if report.memory else None
    # A run reads an address again, from its configuration.
    file = report.dataset_file if isinstance(report.dataset_file, Path) else None
    record = services.commands.submit(config, priority, file, preemptible=preemptible, memory_needed_mb=needed_mb)
    unused = [f"preemptible: a job of {priority} priority is never preempted; only low-priority jobs are"]
    ignored = unused if preemptible and priority != "low" else []
    return _queued(services, record, prefix, [*report.warnings, *ignored])


def _queued(services: Services, record: JobRecord, prefix: str, warnings: list[str]) -> JobCreated:
    # The job may have started since the commit, in which case it was the first in the queue.
    position = _position(services, record) or 1
    message = f"{prefix} Job {record.job_id} queued at position {position}."
    return JobCreated(job_id=record.job_id, status="queued", message=message, warnings=warnings)


def _position(services: Services, record: JobRecord) -> int | None:
    if record.state != "queued":
        return None
    with services.database.read() as connection:
        return jobs.queue_position(connection, record)
