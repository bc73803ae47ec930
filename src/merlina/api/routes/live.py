"""The WebSocket (API document, "WebSocket API")."""

from __future__ import annotations

from fastapi import APIRouter, WebSocket

from merlina.api.live import serve_reader
from merlina.api.services import ServicesDep

router = APIRouter()


@router.websocket("/ws/{job_id}")
async def watch(websocket: WebSocket, services: ServicesDep, job_id: str, after: str | None = None) -> None:
    """Sends a job's messages; `after`, the number of an event, replays from that event on.

    It is taken as text, since FastAPI refuses a WebSocket whose parameters are wrong without saying why.
    """
    await serve_reader(websocket, services, job_id, after)
