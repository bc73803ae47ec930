"""Chat with a job's model and its base model, and compare the two blindly."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.concurrency import run_in_threadpool

from merlina.api.disconnects import watched
from merlina.api.services import ServicesDep
from merlina.api.streams import LinesResponse
from merlina.api.uploads.receiving import keep_rows
from merlina.api.views import chat_state, upload_response
from merlina.schemas.chat import (
    AnswerLine,
    AnswerRequest,
    ChatState,
    Comparison,
    ComparisonList,
    ComparisonRequest,
    LoadRequest,
    Vote,
)
from merlina.schemas.datasets import UploadResponse

router = APIRouter(prefix="/chat", tags=["chat"])

_Responses = dict[int | str, dict[str, Any]]
_CONFLICT: _Responses = {
    409: {"description": "A run has the memory or waits for it, or the model was let go meanwhile"},
    500: {"description": "The process that holds the model died"},
}
_VOTED: _Responses = {409: {"description": "There was a vote before"}}
_LINES: _Responses = {200: {"model": AnswerLine, "description": "One AnswerLine a line"}}


@router.get("")
def state(services: ServicesDep) -> ChatState:
    """Return which model is loaded for chat, how much memory it holds, and when it will be unloaded."""
    return chat_state(services.chat_process.status)


@router.post("/load", responses=_CONFLICT)
async def load(request: LoadRequest, connection: Request, services: ServicesDep) -> ChatState:
    """Loads the model that a job saved, unless it is loaded; another one is let go first."""
    async with watched(connection) as closed:
        await run_in_threadpool(
            services.chat.load, request.job_id, closed, with_base=request.with_base, force=request.force
        )
    return chat_state(services.chat_process.status)


@router.delete("")
def release(services: ServicesDep) -> ChatState:
    """Lets the model go, whatever it does, and gives its memory back."""
    services.chat_process.release("DELETE /chat")
    return chat_state(services.chat_process.status)


@router.post("/answer", response_class=LinesResponse, responses=_LINES | _CONFLICT)
async def answer(request: AnswerRequest, connection: Request, services: ServicesDep) -> LinesResponse:
    """What one side answers, as JSON lines while it is drawn; closing the connection ends it."""
    return await LinesResponse.open(
        connection,
        lambda closed: services.chat.answer(request.job_id, request.side, request.messages, request, closed),
    )


@router.post("/comparisons", responses=_CONFLICT)
async def compare(request: ComparisonRequest, connection: Request, services: ServicesDep) -> Comparison:
    """Two answers to one prompt, left and right as it happens: generated now, or given."""
    async with watched(connection) as closed:
        return await run_in_threadpool(services.comparisons.compare, request, closed)


@router.get("/comparisons")
def list_comparisons(
    services: ServicesDep,
    job_id: Annotated[str, Query(max_length=64)],
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    offset: Annotated[int, Query(ge=0, le=2**31)] = 0,
) -> ComparisonList:
    """A job's comparisons, newest first, with its wins, losses and win rate over all of them."""
    return services.comparisons.page(job_id, limit, offset)


@router.post("/comparisons/{comparison_id}/vote", responses=_VOTED)
def vote(comparison_id: str, request: Vote, services: ServicesDep) -> Comparison:
    """Takes the vote, once, and tells whose answers they were."""
    return services.comparisons.vote(comparison_id, request.better)


@router.post("/comparisons/dataset")
def save_votes(services: ServicesDep, job_id: Annotated[str, Query(max_length=64)]) -> UploadResponse:
    """Save a job's votes as an uploaded preference data set of prompt, chosen and rejected. Ties are left out."""
    rows = services.comparisons.preference_rows(job_id)
    return upload_response(keep_rows(services, rows, f"votes_{job_id}.jsonl"))
