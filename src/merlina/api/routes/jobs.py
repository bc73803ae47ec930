"""Jobs from birth to deletion (API document, "Training Job Management")."""

from __future__ import annotations

from collections import deque
from typing import Annotated, Any

from fastapi import APIRouter, Query

from merlina.api.disconnects import run_slow
from merlina.api.loading_code import read_loading_code
from merlina.api.services import Services, ServicesDep
from merlina.api.views import TIMELINE_EVENTS, history_entry, job_status, job_summary, log_line, metric_row, timeline
from merlina.domain.job_states import JobState
from merlina.errors import InvalidRequestError
from merlina.runs import find_events
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
from merlina.schemas.training import TrainingConfig
from merlina.storage import jobs, metrics
from merlina.storage.jobs import JobRecord

router = APIRouter(tags=["jobs"])


@router.post("/train")
async def train(
    config: TrainingConfig, services: ServicesDep, priority: Priority = "normal", preemptible: bool = False
) -> JobCreated:
    """Checks a configuration and puts a job into the queue.

    A preemptible job of low priority makes way where one of high priority waits for its place, and comes back after it.
    """
    greeting = "Training spell cast!"
    return await run_slow(services.slow_threads, _submit, services, config, priority, greeting, preemptible=preemptible)


@router.get("/status/{job_id}")
def status(job_id: str, services: ServicesDep) -> JobStatus:
    """Where one job stands."""
    record = services.commands.find(job_id)
    return job_status(record, _position(services, record))


@router.get("/jobs")
def list_jobs(services: ServicesDep) -> dict[str, JobSummary]:
    """State and progress of every job, newest first."""
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
    """One page of all jobs, newest first."""
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
    """Every recorded figure, one row an optimizer step; step 0 holds the evaluation before training.

    `max_points` thins them for a chart: evaluations stay first, and others are spread evenly over the steps.
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
    """The configuration the job runs with; tokens are left out."""
    return services.commands.config(job_id).model_dump(mode="json")


@router.get("/jobs/{job_id}/logs")
def job_logs(job_id: str, services: ServicesDep, limit: Annotated[int, Query(ge=1, le=10_000)] = 1000) -> JobLogs:
    """The newest lines of the run's log, oldest first."""
    services.commands.find(job_id)
    newest = deque(find_events(services.commands.folder(job_id).events_file, Logged), maxlen=limit)
    lines = [log_line(event) for event in newest]
    return JobLogs(job_id=job_id, logs=lines, count=len(lines))


@router.get("/jobs/{job_id}/loading-code")
def loading_code(job_id: str, services: ServicesDep) -> LoadingCode:
    """The Python that loads the job's model, as its model card shows it."""
    output_dir = services.commands.find(job_id).output_dir
    code = read_loading_code(output_dir)
    return LoadingCode(job_id=job_id, output_dir=str(output_dir), code=code)


@router.get("/jobs/{job_id}/timeline")
def job_timeline(job_id: str, services: ServicesDep) -> JobTimeline:
    """The states the job went through and when it entered each, over all its attempts."""
    record = services.commands.find(job_id)
    events = find_events(services.commands.folder(job_id).events_file, *TIMELINE_EVENTS)
    states = timeline(record, events)
    return JobTimeline(job_id=job_id, states=states, count=len(states))


@router.post("/jobs/{job_id}/stop")
def stop(job_id: str, services: ServicesDep) -> StopResponse:
    """Cancels a waiting job, or lets a running one end after its optimizer step, saving what it has."""
    record, before = services.commands.stop(job_id)
    if before == "queued":
        message = f"Job {job_id} removed from queue"
        return StopResponse(status="success", message=message, job_id=job_id, was_queued=True)
    if before == "paused":
        kept = f"; the checkpoint at step {record.last_checkpoint} can be resumed" if record.last_checkpoint else ""
        message = f"Job {job_id} was paused and is {record.state} now. No model was saved{kept}."
        return StopResponse(status="success", message=message, job_id=job_id, was_queued=False)
    if record.is_ended:
        message = f"Job {job_id} is {record.state} already; nothing to stop"
        return StopResponse(status="warning", message=message, job_id=job_id, was_queued=False)
    message = f"Stop request sent to job {job_id}. Training will stop after current step."
    return StopResponse(status="success", message=message, job_id=job_id, was_queued=False)


@router.post("/jobs/{job_id}/pause")
def pause(job_id: str, services: ServicesDep) -> JobAction:
    """Holds a waiting job back, or lets a running one write a checkpoint after its step and give up its GPU."""
    record, done = services.commands.pause(job_id)
    if not done:
        stopping = record.is_running and record.stop_requested_at is not None
        message = f"Job {job_id} is {'being stopped' if stopping else record.state}; there is nothing to pause"
        return JobAction(status="warning", message=message, job_id=job_id)
    if record.state == "paused":
        message = f"Job {job_id} is paused; POST /jobs/{job_id}/resume goes on with it"
    else:
        message = f"Pause request sent to job {job_id}. It will write a checkpoint after its current step."
    return JobAction(status="success", message=message, job_id=job_id)


@router.post("/jobs/{job_id}/resume")
async def resume(job_id: str, services: ServicesDep, force: bool = False) -> JobCreated:
    """Queues a failed, stopped or paused job to continue from its newest complete checkpoint, which the answer names.

    If no complete checkpoint is left, or the data set is not the one it was trained on, the answer is 409 with the
    difference. `force` ignores all checkpoints and starts over at step 1.
    """
    return await run_slow(services.slow_threads, _resume, services, job_id, force=force)


@router.post("/jobs/{job_id}/retry")
async def retry(job_id: str, services: ServicesDep) -> JobCreated:
    """Checks the configuration of this job once more and queues a new one with it.

    A job that has completed gave up its tokens: what needs one is then told by the checks.
    """
    return await run_slow(services.slow_threads, _retry, services, job_id)


@router.delete("/jobs/{job_id}")
def delete(job_id: str, services: ServicesDep) -> JobAction:
    """Deletes a job with its metrics, stopping it first where it runs; finished models stay."""
    services.commands.delete(job_id)
    return JobAction(status="success", message=f"Job {job_id} deleted successfully", job_id=job_id)


@router.delete("/jobs")
def clear(services: ServicesDep) -> JobsCleared:
    """Deletes every job, as DELETE of one does."""
    deleted = services.commands.clear()
    return JobsCleared(message=f"Cleared all jobs ({deleted} jobs deleted)", deleted_count=deleted)


def _retry(services: Services, job_id: str) -> JobCreated:
    config, priority, preemptible = services.commands.again(job_id)
    return _submit(services, config, priority, f"Once more, like {job_id}.", preemptible=preemptible)


def _resume(services: Services, job_id: str, *, force: bool) -> JobCreated:
    record, resumption = services.commands.resume(job_id, force=force)
    return _queued(services, record, resumption.message, list(resumption.warnings))


def _submit(
    services: Services, config: TrainingConfig, priority: Priority, greeting: str, *, preemptible: bool
) -> JobCreated:
    report = services.preflight.check(config)
    if report.errors:
        raise InvalidRequestError("Training configuration validation failed", report.all_findings)
    needed_mb = report.memory.needed_mb if report.memory else None
    record = services.commands.submit(
        config, priority, report.dataset_file, preemptible=preemptible, memory_needed_mb=needed_mb
    )
    unused = [f"preemptible: a job of {priority} priority never makes way, only one of low priority does"]
    ignored = unused if preemptible and priority != "low" else []
    return _queued(services, record, greeting, [*report.warnings, *ignored])


def _queued(services: Services, record: JobRecord, greeting: str, warnings: list[str]) -> JobCreated:
    # Between the commit and this look the job may have started already: then it was first in the queue.
    position = _position(services, record) or 1
    message = f"{greeting} Job {record.job_id} queued at position {position}."
    return JobCreated(job_id=record.job_id, status="queued", message=message, warnings=warnings)


def _position(services: Services, record: JobRecord) -> int | None:
    if record.state != "queued":
        return None
    with services.database.read() as connection:
        return jobs.queue_position(connection, record)
