"""The queue (docs/api.md, "Training")."""

from __future__ import annotations

from fastapi import APIRouter

from merlina.api.routes.general import queue_stats
from merlina.api.services import Services, ServicesDep
from merlina.jobs.requests import pending_requests
from merlina.schemas.jobs import QueuedJob, QueueJobs, QueueStatus, RunningJob
from merlina.storage import jobs

router = APIRouter(prefix="/queue", tags=["queue"])


@router.get("/status")
def queue_status(services: ServicesDep) -> QueueStatus:
    """Return queue statistics with all queued and running jobs."""
    queued, running = _lists(services)
    with services.database.read() as connection:
        *_, paused = jobs.counts(connection)
    stats = queue_stats(services, len(queued), len(running), paused)
    return QueueStatus(stats=stats, queued_jobs=queued, running_jobs=running)


@router.get("/jobs")
def queue_jobs(services: ServicesDep) -> QueueJobs:
    """List queued jobs in the order in which they will start, and running jobs."""
    queued, running = _lists(services)
    return QueueJobs(queued=queued, running=running)


def _lists(services: Services) -> tuple[list[QueuedJob], list[RunningJob]]:
    with services.database.read() as connection:
        queued, running = jobs.queued(connection), jobs.running(connection)
    waiting = services.supervisor.plan().waiting
    return (
        [
            QueuedJob(
                job_id=record.job_id,
                priority=record.priority,
                preemptible=record.preemptible,
                position=position,
                waiting_for=waiting.get(record.job_id),
            )
            for position, record in enumerate(queued, start=1)
        ],
        [
            RunningJob(
                job_id=record.job_id,
                priority=record.priority,
                preemptible=record.preemptible,
                **pending_requests(record),
            )
            for record in running
            if not record.deleting
        ],
    )
