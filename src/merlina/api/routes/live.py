"""The WebSocket endpoint (docs/api.md, "WebSocket")."""

from __future__ import annotations

from fastapi import APIRouter, WebSocket

from merlina.api.live import serve_connection
from merlina.api.services import ServicesDep

router = APIRouter()


@router.websocket("/ws/{job_id}")
async def watch(websocket: WebSocket, services: ServicesDep, job_id: str, after: str | None = None) -> None:
    """Send a job's messages. With `after`, the number of an event, replay the events after it.

    `after` is declared as text because FastAPI refuses a WebSocket with invalid parameters without a reason.
    """
    await serve_connection(websocket, services, job_id, after)
