"""Chat completions in the form of OpenAI's API, for its clients (docs/api.md, "OpenAI-compatible API")."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from starlette.concurrency import run_in_threadpool

from merlina.api.long_requests import disconnect_event
from merlina.api.services import ServicesDep
from merlina.api.streams import EventsResponse
from merlina.schemas.completions import Completion, CompletionRequest, ServedModel, ServedModels

router = APIRouter(prefix="/v1", tags=["completions"])

_COMPLETION: dict[int | str, dict[str, Any]] = {
    200: {
        "model": Completion,
        "description": "The answer; with `stream`, server-sent events with a CompletionChunk each, then `[DONE]`",
    },
    409: {"description": "A run holds or waits for the memory, or the model was unloaded meanwhile"},
    500: {"description": "The process that holds the model died"},
}


@router.get("/models")
def list_models(services: ServicesDep) -> ServedModels:
    """List the models that completions can name: finished models, newest first, then their base models."""
    return services.completions.models()


@router.get("/models/{name:path}")
def model(name: str, services: ServicesDep) -> ServedModel:
    """Return one model by its name, the id of its job, or the name of a base model."""
    return services.completions.model(name)


@router.post("/chat/completions", responses=_COMPLETION, response_class=JSONResponse)
async def complete(request: CompletionRequest, connection: Request, services: ServicesDep) -> Response:
    """Answer a conversation with a finished model or a base model; closing the connection cancels the answer."""
    if request.stream:
        return await EventsResponse.open(connection, lambda closed: services.completions.stream(request, closed))
    async with disconnect_event(connection) as closed:
        completion = await run_in_threadpool(services.completions.complete, request, closed)
    return JSONResponse(completion.model_dump(mode="json"))
