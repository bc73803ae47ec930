"""Blind comparisons: two answers side by side, a vote, how the votes went, and the votes as rows to train on."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Iterator
from typing import Any, get_args

from merlina.api.services import Services
from merlina.api.uploads import keep_rows
from merlina.api.views import comparison_view, tally_view
from merlina.errors import ConflictError, InvalidRequestError, NotFoundError
from merlina.schemas.talk import (
    AnswerText,
    Better,
    Comparison,
    ComparisonList,
    ComparisonRequest,
    GivenAnswers,
    Side,
    Winner,
)
from merlina.storage import comparisons
from merlina.storage.comparisons import ComparisonRecord
from merlina.storage.uploads import UploadRecord


def compare(services: Services, request: ComparisonRequest, closed: threading.Event) -> Comparison:
    """Raises as `Talk.answer` does where answers are to be generated; the sides are shuffled in either case."""
    job = services.desk.find(request.job_id)
    answers = request.answers or _generated(services, request, closed)
    record = ComparisonRecord(
        comparison_id=f"comparison_{secrets.token_hex(8)}",
        job_number=job.number,
        messages=[message.model_dump() for message in request.messages],
        base=answers.base,
        tuned=answers.tuned,
        tuned_is_left=secrets.choice((True, False)),
        winner=None,
        created_at=time.time(),
    )
    with services.database.write() as connection:
        comparisons.add(connection, record)
    return comparison_view(record, job.job_id)


def vote(services: Services, comparison_id: str, better: Better) -> Comparison:
    """Raises NotFoundError; ConflictError where there was a vote before, since what follows it is not blind."""
    with services.database.write() as connection:
        found = comparisons.get(connection, comparison_id)
        if found is None:
            raise NotFoundError(f"There is no comparison {comparison_id[:100]!r}; GET /talk/comparisons lists them")
        if not comparisons.vote(connection, comparison_id, _winner(found[0], better)):
            raise ConflictError(f"There was a vote on {comparison_id} before; whose answers they are is known since")
        voted = comparisons.get(connection, comparison_id)
    assert voted is not None
    return comparison_view(*voted)


def listed(services: Services, job_id: str, limit: int, offset: int) -> ComparisonList:
    """Raises NotFoundError."""
    job = services.desk.find(job_id)
    with services.database.read() as connection:
        records = comparisons.page(connection, job.number, limit, offset)
        counts = comparisons.counts(connection, job.number)
    shown = [comparison_view(record, job_id) for record in records]
    return ComparisonList(
        job_id=job_id, tally=tally_view(counts), comparisons=shown, count=len(shown), total=sum(counts.values())
    )


def save_votes(services: Services, job_id: str) -> UploadRecord:
    """The votes that decided for a side, as an upload.

    Raises NotFoundError, InvalidRequestError where there are none.
    """
    job = services.desk.find(job_id)
    with services.database.read() as connection:
        rows = list(_rows(comparisons.decided(connection, job.number)))
    if not rows:
        raise InvalidRequestError(
            f"There is no vote on {job_id} that gives a pair: a side that won, with text in both answers that differs"
        )
    return keep_rows(services, rows, f"votes_{job_id}.jsonl")


def _generated(services: Services, request: ComparisonRequest, closed: threading.Event) -> GivenAnswers:
    sides: tuple[Side, ...] = get_args(Side)
    texts = {side: _whole_answer(services, request, side, closed) for side in sides}
    return GivenAnswers(**texts)


def _whole_answer(services: Services, request: ComparisonRequest, side: Side, closed: threading.Event) -> str:
    events = services.talk.answer(request.job_id, side, request.messages, request, closed)
    return "".join(event.text for event in events if isinstance(event, AnswerText)).strip()


def _winner(record: ComparisonRecord, better: Better) -> Winner:
    if better == "tie":
        return "tie"
    return "tuned" if (better == "left") == record.tuned_is_left else "base"


def _rows(decided: list[ComparisonRecord]) -> Iterator[dict[str, Any]]:
    for record in decided:
        chosen, rejected = record.tuned, record.base
        if record.winner == "base":
            chosen, rejected = rejected, chosen
        if chosen.strip() and rejected.strip() and chosen != rejected:
            yield {"prompt": record.messages, "chosen": chosen, "rejected": rejected}
