"""The WebSocket (API document, "WebSocket API")."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, WebSocket

from merlina.api.live import serve_reader
from merlina.api.services import Inject

router = APIRouter()


@router.websocket("/ws/{job_id}")
async def watch(
    websocket: WebSocket, services: Inject, job_id: str, after: Annotated[int | None, Query(ge=0)] = None
) -> None:
    """Sends a job's messages; `after` replays from that event on."""
    await serve_reader(websocket, services, job_id, after)
