"""Blind comparisons: two answers side by side, a vote, the tally, and the votes as preference data."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, get_args

from merlina.chat.service import ChatService
from merlina.chat.win_rate import win_rate
from merlina.domain.timestamps import iso
from merlina.errors import ConflictError, InvalidRequestError, NotFoundError
from merlina.jobs.commands import JobCommands
from merlina.schemas.chat import (
    AnswerText,
    ChatMessage,
    Comparison,
    ComparisonList,
    ComparisonRequest,
    GivenAnswers,
    Position,
    Side,
    Tally,
    Verdict,
    Winner,
)
from merlina.storage import comparisons
from merlina.storage.comparisons import ComparisonRecord
from merlina.storage.database import Database


@dataclass(frozen=True)
class Comparisons:
    """Blind comparisons of jobs' models with their base models, kept in the database."""

    database: Database
    commands: JobCommands
    chat: ChatService

    def compare(self, request: ComparisonRequest, closed: threading.Event) -> Comparison:
        """Store two answers to one prompt, given or generated now, on the left and the right at random.

        Raises NotFoundError, and the errors of `ChatService.answer` if answers have to be generated.
        """
        job = self.commands.find(request.job_id)
        answers = request.answers or self._generate(request, closed)
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
        with self.database.write() as connection:
            comparisons.add(connection, record)
        return _as_response(record, job.job_id)

    def vote(self, comparison_id: str, better: Verdict) -> Comparison:
        """Record a vote and reveal which answer is the tuned model's.

        Raises NotFoundError, and ConflictError if the comparison already has a vote: a second one would not be blind.
        """
        with self.database.write() as connection:
            found = comparisons.get(connection, comparison_id)
            if found is None:
                raise NotFoundError(f"There is no comparison {comparison_id[:100]!r}; GET /chat/comparisons lists them")
            if not comparisons.vote(connection, comparison_id, _winner(found[0], better)):
                raise ConflictError(f"{comparison_id} already has a vote; its sides have been revealed since")
            voted = comparisons.get(connection, comparison_id)
        assert voted is not None
        return _as_response(*voted)

    def page(self, job_id: str, limit: int, offset: int) -> ComparisonList:
        """Return one page of a job's comparisons, newest first, with the tally of all. Raises NotFoundError."""
        job = self.commands.find(job_id)
        with self.database.read() as connection:
            records = comparisons.page(connection, job.number, limit, offset)
            counts = comparisons.counts(connection, job.number)
        shown = [_as_response(record, job_id) for record in records]
        return ComparisonList(
            job_id=job_id, tally=_tally(counts), comparisons=shown, count=len(shown), total=sum(counts.values())
        )

    def preference_rows(self, job_id: str) -> list[dict[str, Any]]:
        """Return the votes that preferred a side as rows of prompt, chosen and rejected.

        Raises NotFoundError, and InvalidRequestError if there are none.
        """
        job = self.commands.find(job_id)
        with self.database.read() as connection:
            rows = list(_rows(comparisons.decided(connection, job.number)))
        if not rows:
            raise InvalidRequestError(
                f"{job_id} has no vote that gives a preference pair: one side preferred, with two different texts"
            )
        return rows

    def _generate(self, request: ComparisonRequest, closed: threading.Event) -> GivenAnswers:
        sides: tuple[Side, ...] = get_args(Side)
        return GivenAnswers(**{side: self._answer(request, side, closed) for side in sides})

    def _answer(self, request: ComparisonRequest, side: Side, closed: threading.Event) -> str:
        events = self.chat.answer(request.job_id, side, request.messages, request, closed)
        return "".join(event.text for event in events if isinstance(event, AnswerText)).strip()


def _winner(record: ComparisonRecord, better: Verdict) -> Winner:
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


def _as_response(record: ComparisonRecord, job_id: str) -> Comparison:
    """Reveal which answer is the tuned model's only after the vote."""
    answers = (record.tuned, record.base) if record.tuned_is_left else (record.base, record.tuned)
    tuned: Position = "left" if record.tuned_is_left else "right"
    other: Position = "right" if record.tuned_is_left else "left"
    better: dict[Winner | None, Verdict | None] = {None: None, "tie": "tie", "tuned": tuned, "base": other}
    return Comparison(
        comparison_id=record.comparison_id,
        job_id=job_id,
        messages=[ChatMessage.model_validate(message) for message in record.messages],
        left=answers[0],
        right=answers[1],
        created_at=iso(record.created_at),
        better=better[record.winner],
        tuned=tuned if record.winner else None,
        winner=record.winner,
    )


def _tally(counts: Mapping[Winner | None, int]) -> Tally:
    """Return the tally of `counts`, the numbers of comparisons by winner; None counts those without a vote."""
    wins, losses = counts.get("tuned", 0), counts.get("base", 0)
    found = win_rate(wins, losses)
    return Tally(
        wins=wins,
        losses=losses,
        ties=counts.get("tie", 0),
        open=counts.get(None, 0),
        win_rate=found.rate if found else None,
        win_rate_low=found.low if found else None,
        win_rate_high=found.high if found else None,
    )
