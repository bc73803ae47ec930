"""Queries on metric rows: one row a job and optimizer step; training and evaluation figures share it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import Connection, delete, func, select
from sqlalchemy.dialects import postgresql, sqlite

from merlina.storage.tables import metrics

Figures = dict[str, float | None]


@dataclass(frozen=True)
class MetricRecord:
    """The figures of one optimizer step; `timestamp` in epoch seconds."""

    step: int
    timestamp: float
    figures: Figures


def record(connection: Connection, job_number: int, rows: Iterable[MetricRecord]) -> None:
    """Adds rows; figures of a step that is there already are joined to it."""
    merged: dict[int, MetricRecord] = {}
    for row in rows:
        before = merged.get(row.step) or _one(connection, job_number, row.step)
        figures = {**before.figures, **row.figures} if before else row.figures
        merged[row.step] = MetricRecord(row.step, row.timestamp, figures)
    if not merged:
        return
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    query = dialect.insert(metrics)
    query = query.on_conflict_do_update(
        index_elements=[metrics.c.job_number, metrics.c.step],
        set_={"timestamp": query.excluded.timestamp, "figures": query.excluded.figures},
    )
    connection.execute(
        query,
        [
            {"job_number": job_number, "step": row.step, "timestamp": row.timestamp, "figures": row.figures}
            for row in merged.values()
        ],
    )


def forget_after(connection: Connection, job_number: int, step: int) -> None:
    """Drops the rows of steps that a resumed run takes again."""
    connection.execute(delete(metrics).where(metrics.c.job_number == job_number, metrics.c.step > step))


def rows(
    connection: Connection,
    job_number: int,
    *,
    since_step: int | None = None,
    limit: int | None = None,
    max_points: int | None = None,
) -> list[MetricRecord]:
    """Rows in step order; from `since_step` on, the first `limit`, or `max_points` spread evenly over all."""
    matches = metrics.c.job_number == job_number
    if since_step is not None:
        matches &= metrics.c.step >= since_step
    query = select(metrics.c.step, metrics.c.timestamp, metrics.c.figures).where(matches).order_by(metrics.c.step)
    if max_points is not None:
        keys = list(connection.execute(select(metrics.c.step).where(matches).order_by(metrics.c.step)).scalars())
        if len(keys) > max_points:
            return _at_steps(connection, job_number, _spread(keys, max_points))[:limit]
    if limit is not None:
        query = query.limit(limit)
    return [MetricRecord(*row) for row in connection.execute(query)]


def count(connection: Connection) -> int:
    return connection.execute(select(func.count()).select_from(metrics)).scalar_one()


def _spread(keys: list[int], points: int) -> list[int]:
    if points == 1:
        return keys[-1:]
    last = len(keys) - 1
    return [keys[round(index * last / (points - 1))] for index in range(points)]


def _at_steps(connection: Connection, job_number: int, steps: list[int]) -> list[MetricRecord]:
    # SQLite takes at most 32,766 bound values in one statement.
    found: list[MetricRecord] = []
    for begin in range(0, len(steps), 10_000):
        query = (
            select(metrics.c.step, metrics.c.timestamp, metrics.c.figures)
            .where(metrics.c.job_number == job_number, metrics.c.step.in_(steps[begin : begin + 10_000]))
            .order_by(metrics.c.step)
        )
        found += [MetricRecord(*row) for row in connection.execute(query)]
    return found


def _one(connection: Connection, job_number: int, step: int) -> MetricRecord | None:
    query = select(metrics.c.step, metrics.c.timestamp, metrics.c.figures).where(
        metrics.c.job_number == job_number, metrics.c.step == step
    )
    row = connection.execute(query).one_or_none()
    return MetricRecord(*row) if row else None
