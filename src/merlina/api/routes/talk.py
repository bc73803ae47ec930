"""Talking to a job's model and to its base, and comparing them blindly."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.concurrency import run_in_threadpool

from merlina.api import comparisons
from merlina.api.services import Inject
from merlina.api.streams import LinesResponse, watched
from merlina.api.views import talk_state, upload_answer
from merlina.schemas.datasets import UploadResponse
from merlina.schemas.talk import (
    AnswerLine,
    AnswerRequest,
    Comparison,
    ComparisonList,
    ComparisonRequest,
    LoadRequest,
    TalkState,
    Vote,
)

router = APIRouter(prefix="/talk", tags=["talk"])

_Responses = dict[int | str, dict[str, Any]]
_CONFLICT: _Responses = {
    409: {"description": "A run has the memory or waits for it, or the model was let go meanwhile"},
    500: {"description": "The process that holds the model died"},
}
_VOTED: _Responses = {409: {"description": "There was a vote before"}}
_LINES: _Responses = {200: {"model": AnswerLine, "description": "One AnswerLine a line"}}


@router.get("")
def state(services: Inject) -> TalkState:
    """Which model is loaded for talking, what it holds, and when it is let go."""
    return talk_state(services.talker.status)


@router.post("/load", responses=_CONFLICT)
async def load(request: LoadRequest, connection: Request, services: Inject) -> TalkState:
    """Loads the model that a job saved, unless it is loaded; another one is let go first."""
    async with watched(connection) as closed:
        await run_in_threadpool(
            services.talk.load, request.job_id, closed, with_base=request.with_base, force=request.force
        )
    return talk_state(services.talker.status)


@router.delete("")
def release(services: Inject) -> TalkState:
    """Lets the model go, whatever it does, and gives its memory back."""
    services.talker.release("DELETE /talk")
    return talk_state(services.talker.status)


@router.post("/answer", response_class=LinesResponse, responses=_LINES | _CONFLICT)
async def answer(request: AnswerRequest, connection: Request, services: Inject) -> LinesResponse:
    """What one side answers, as JSON lines while it is drawn; closing the connection ends it."""
    return await LinesResponse.open(
        connection,
        lambda closed: services.talk.answer(request.job_id, request.side, request.messages, request, closed),
    )


@router.post("/comparisons", responses=_CONFLICT)
async def compare(request: ComparisonRequest, connection: Request, services: Inject) -> Comparison:
    """Two answers to one prompt, left and right as it happens: generated now, or given."""
    async with watched(connection) as closed:
        return await run_in_threadpool(comparisons.compare, services, request, closed)


@router.get("/comparisons")
def list_comparisons(
    services: Inject,
    job_id: Annotated[str, Query(max_length=64)],
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    offset: Annotated[int, Query(ge=0, le=2**31)] = 0,
) -> ComparisonList:
    """A job's comparisons, newest first, with its wins, losses and win rate over all of them."""
    return comparisons.listed(services, job_id, limit, offset)


@router.post("/comparisons/{comparison_id}/vote", responses=_VOTED)
def vote(comparison_id: str, request: Vote, services: Inject) -> Comparison:
    """Takes the vote, once, and tells whose answers they were."""
    return comparisons.vote(services, comparison_id, request.better)


@router.post("/comparisons/dataset")
def save_votes(services: Inject, job_id: Annotated[str, Query(max_length=64)]) -> UploadResponse:
    """Saves a job's votes as a preference set among the uploads: prompt, chosen and rejected; ties are left out."""
    return upload_answer(comparisons.save_votes(services, job_id))
