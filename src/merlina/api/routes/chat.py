"""Chat with a job's model and its base model, and blind comparisons of the two (docs/api.md, "Chat")."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.concurrency import run_in_threadpool

from merlina.api.long_requests import disconnect_event
from merlina.api.responses import chat_state, upload_response
from merlina.api.services import ServicesDep
from merlina.api.streams import LinesResponse
from merlina.api.uploads.receiving import store_rows
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
from merlina.schemas.datasets.responses import UploadResponse

router = APIRouter(prefix="/chat", tags=["chat"])

_Responses = dict[int | str, dict[str, Any]]
_CONFLICT: _Responses = {
    409: {"description": "A run holds or waits for the memory, or the model was unloaded meanwhile"},
    500: {"description": "The process that holds the model died"},
}
_VOTED: _Responses = {409: {"description": "The comparison already has a vote"}}
_LINES: _Responses = {200: {"model": AnswerLine, "description": "One AnswerLine per line"}}


@router.get("")
def state(services: ServicesDep) -> ChatState:
    """Return which model is loaded for chat, how much memory it holds, and when it will be unloaded."""
    return chat_state(services.chat_process.status)


@router.post("/load", responses=_CONFLICT)
async def load(request: LoadRequest, connection: Request, services: ServicesDep) -> ChatState:
    """Load the model that a job saved. Another loaded model is unloaded first."""
    async with disconnect_event(connection) as closed:
        await run_in_threadpool(
            services.chat.load, request.job_id, closed, with_base=request.with_base, force=request.force
        )
    return chat_state(services.chat_process.status)


@router.delete("")
def release(services: ServicesDep) -> ChatState:
    """Unload the model at once and free its memory."""
    services.chat_process.unload("DELETE /chat")
    return chat_state(services.chat_process.status)


@router.post("/answer", response_class=LinesResponse, responses=_LINES | _CONFLICT)
async def answer(request: AnswerRequest, connection: Request, services: ServicesDep) -> LinesResponse:
    """Stream the answer of the tuned or base model as JSON lines; closing the connection cancels it."""
    return await LinesResponse.open(
        connection,
        lambda closed: services.chat.answer(request.job_id, request.side, request.messages, request, closed),
    )


@router.post("/comparisons", responses=_CONFLICT)
async def compare(request: ComparisonRequest, connection: Request, services: ServicesDep) -> Comparison:
    """Compare two answers to one prompt, given or generated now, with their sides chosen at random."""
    async with disconnect_event(connection) as closed:
        return await run_in_threadpool(services.comparisons.compare, request, closed)


@router.get("/comparisons")
def list_comparisons(
    services: ServicesDep,
    job_id: Annotated[str, Query(max_length=64)],
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    offset: Annotated[int, Query(ge=0, le=2**31)] = 0,
) -> ComparisonList:
    """List a job's comparisons, newest first, with the wins, losses and win rate over all of them."""
    return services.comparisons.page(job_id, limit, offset)


@router.post("/comparisons/{comparison_id}/vote", responses=_VOTED)
def vote(comparison_id: str, request: Vote, services: ServicesDep) -> Comparison:
    """Record the vote, which is final, and reveal which answer is the tuned model's."""
    return services.comparisons.vote(comparison_id, request.better)


@router.post("/comparisons/dataset")
def save_votes(services: ServicesDep, job_id: Annotated[str, Query(max_length=64)]) -> UploadResponse:
    """Save a job's votes as an uploaded preference data set of prompt, chosen and rejected. Ties are left out."""
    rows = services.comparisons.preference_rows(job_id)
    return upload_response(store_rows(services, rows, f"votes_{job_id}.jsonl"))
