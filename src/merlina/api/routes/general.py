"""Information about the server, its health and metrics, and `/validate` (docs/api.md, "General")."""

from __future__ import annotations

import time

from fastapi import APIRouter, Request
from fastapi.responses import PlainTextResponse, Response
from fastapi.routing import APIRoute
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from merlina.api import docs, prometheus
from merlina.api.long_requests import run_while_connected
from merlina.api.services import Services, ServicesDep
from merlina.schemas.jobs import QueueStats
from merlina.schemas.system import ApiInfo, DatabaseStats, Health, Stats, WebSocketStats
from merlina.schemas.training.config import TrainingConfig
from merlina.schemas.validation import ValidationResponse
from merlina.storage import jobs, metrics
from merlina.version import current

router = APIRouter(tags=["general"])


@router.get("/api")
async def api_info(request: Request) -> ApiInfo:
    """Return name, version and all endpoints of the API."""
    endpoints = {
        f"{method.upper()} {path}": operation["description"].split("\n")[0]
        for path, operations in request.app.openapi()["paths"].items()
        for method, operation in operations.items()
    }
    pages = (route for route in docs.router.routes if isinstance(route, APIRoute))
    endpoints |= {f"GET {route.path}": route.description for route in pages}
    endpoints |= {"GET /api/openapi.json": "OpenAPI description of the API."}
    return ApiInfo(
        name="Merlina",
        version=current().number,
        description="Fine-tunes language models on preference pairs",
        endpoints=endpoints,
    )


@router.get("/health")
async def health(services: ServicesDep) -> Health:
    """Return whether the server responds, without accessing disk or GPU."""
    version = current()
    uptime = round(time.monotonic() - services.started_at, 3)
    return Health(version=version.number, commit=version.commit, uptime_seconds=uptime)


@router.get("/metrics", response_class=PlainTextResponse)
def prometheus_metrics(services: ServicesDep) -> Response:
    """Return metrics of the server and its runs in Prometheus' text format."""
    return Response(prometheus.render(services), media_type=CONTENT_TYPE_PLAIN_0_0_4)


@router.get("/stats")
def stats(services: ServicesDep) -> Stats:
    """Return counts of jobs, metric rows and connections."""
    with services.database.read() as connection:
        counts = jobs.counts(connection)
        rows = metrics.count(connection)
    size = services.database.size_bytes() / 1024**2
    return Stats(
        database=DatabaseStats(total_jobs=counts.total, total_metrics=rows, db_size_mb=round(size, 3)),
        websockets=WebSocketStats(total_connections=services.websockets),
        queue=queue_stats(services, counts),
    )


@router.post("/validate")
async def validate(config: TrainingConfig, connection: Request, services: ServicesDep) -> ValidationResponse:
    """Check a configuration against the machine, the model and the data without running it."""
    report = await run_while_connected(connection, services.long_request_threads, services.preflight.check, config)
    return report.response()


def queue_stats(services: Services, counts: jobs.Counts) -> QueueStats:
    slots = services.settings.max_concurrent_jobs
    return QueueStats(
        queued_count=counts.queued,
        running_count=counts.running,
        paused_count=counts.paused,
        max_concurrent=slots,
        available_slots=max(0, slots - counts.occupied_slots),
    )
