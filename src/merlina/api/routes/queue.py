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
    counts, queued, running = _queue(services)
    return QueueStatus(stats=queue_stats(services, counts), queued_jobs=queued, running_jobs=running)


@router.get("/jobs")
def queue_jobs(services: ServicesDep) -> QueueJobs:
    """List queued jobs in the order in which they will start, and running jobs."""
    _, queued, running = _queue(services)
    return QueueJobs(queued=queued, running=running)


def _queue(services: Services) -> tuple[jobs.Counts, list[QueuedJob], list[RunningJob]]:
    with services.database.read() as connection:
        counts, queued, running = jobs.counts(connection), jobs.queued(connection), jobs.running(connection)
    waiting = services.supervisor.plan().waiting
    return (
        counts,
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
