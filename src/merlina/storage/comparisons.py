"""Queries on comparisons of base and tuned answers, and on their votes."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Connection, Select, func, insert, select, update

from merlina.schemas.chat import Winner
from merlina.storage.tables import comparisons, jobs


@dataclass(frozen=True, kw_only=True)
class ComparisonRecord:
    """One row. `messages` are objects with role and content; `winner` is None until the vote."""

    comparison_id: str
    job_number: int
    messages: list[dict[str, str]]
    base: str
    tuned: str
    tuned_is_left: bool
    winner: Winner | None
    created_at: float


_COLUMNS = [comparisons.c[name] for name in ComparisonRecord.__dataclass_fields__]


def add(connection: Connection, record: ComparisonRecord) -> None:
    connection.execute(insert(comparisons).values(asdict(record)))


def get(connection: Connection, comparison_id: str) -> tuple[ComparisonRecord, str] | None:
    """Return a comparison and its job's id; None if there is none or the job is being deleted."""
    query = (
        select(*_COLUMNS, jobs.c.job_id)
        .join(jobs, comparisons.c.job_number == jobs.c.number)
        .where(comparisons.c.comparison_id == comparison_id, ~jobs.c.deleting)
    )
    row = connection.execute(query).one_or_none()
    return (_record(row[:-1]), row.job_id) if row else None


def vote(connection: Connection, comparison_id: str, winner: Winner) -> bool:
    """Store a vote; return False if the comparison has one already."""
    query = update(comparisons).where(comparisons.c.comparison_id == comparison_id, comparisons.c.winner.is_(None))
    return connection.execute(query.values(winner=winner)).rowcount > 0


def page(connection: Connection, job_number: int, limit: int, offset: int) -> list[ComparisonRecord]:
    """Return one page of a job's comparisons, newest first."""
    query = _of(job_number).order_by(comparisons.c.number.desc()).limit(limit).offset(offset)
    return [_record(row) for row in connection.execute(query)]


def decided(connection: Connection, job_number: int) -> list[ComparisonRecord]:
    """Return the comparisons in which one side won, oldest first."""
    query = _of(job_number).where(comparisons.c.winner.in_(("base", "tuned"))).order_by(comparisons.c.number)
    return [_record(row) for row in connection.execute(query)]


def counts(connection: Connection, job_number: int) -> dict[Winner | None, int]:
    """Return the number of comparisons per winner; the key None counts those without a vote."""
    query = (
        select(comparisons.c.winner, func.count())
        .where(comparisons.c.job_number == job_number)
        .group_by(comparisons.c.winner)
    )
    return {winner: number for winner, number in connection.execute(query).tuples()}  # noqa: C416


def _of(job_number: int) -> Select[Any]:
    return select(*_COLUMNS).where(comparisons.c.job_number == job_number)


def _record(row: Any) -> ComparisonRecord:
    return ComparisonRecord(**dict(zip(ComparisonRecord.__dataclass_fields__, row, strict=True)))
