"""Queries on metric rows: one row per job and optimizer step, with its training and evaluation metrics."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import BigInteger, ColumnElement, Connection, Select, delete, func, literal, select, union, update
from sqlalchemy.dialects import postgresql, sqlite

from merlina.storage.tables import jobs, metrics

MetricValues = dict[str, float | None]


@dataclass(frozen=True)
class MetricRecord:
    """The metrics of one optimizer step; `timestamp` is in epoch seconds."""

    step: int
    timestamp: float
    metrics: MetricValues


def add_rows(connection: Connection, job_number: int, rows: Iterable[MetricRecord]) -> None:
    """Add rows. Metrics of a step that has a row already are merged into it."""
    fresh = list(rows)
    if not fresh:
        return
    existing = _between(connection, job_number, min(row.step for row in fresh), max(row.step for row in fresh))
    merged: dict[int, MetricRecord] = {}
    for row in fresh:
        before = merged.get(row.step) or existing.get(row.step)
        merged_values = {**before.metrics, **row.metrics} if before else row.metrics
        merged[row.step] = MetricRecord(row.step, row.timestamp, merged_values)
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    query = dialect.insert(metrics)
    query = query.on_conflict_do_update(
        index_elements=[metrics.c.job_number, metrics.c.step],
        set_={name: query.excluded[name] for name in ("timestamp", "metrics", "evaluated")},
    )
    connection.execute(query, [_values(job_number, row) for row in merged.values()])
    _add_to_row_count(connection, job_number, len(merged.keys() - existing.keys()))


def delete_after(connection: Connection, job_number: int, step: int) -> None:
    """Delete the rows of steps that a resumed run repeats."""
    dropped = connection.execute(delete(metrics).where(metrics.c.job_number == job_number, metrics.c.step > step))
    _add_to_row_count(connection, job_number, -dropped.rowcount)


def rows(
    connection: Connection,
    job_number: int,
    *,
    since_step: int | None = None,
    until_step: int | None = None,
    limit: int | None = None,
    max_points: int | None = None,
) -> list[MetricRecord]:
    """Return the rows from `since_step` to `until_step` in step order, at most `limit`.

    More than `max_points` rows are downsampled to that number: evaluations get up to half of it, and the other rows are
    spread evenly over all steps.
    """
    matches = metrics.c.job_number == job_number
    if since_step is not None:
        matches &= metrics.c.step >= since_step
    if until_step is not None:
        matches &= metrics.c.step <= until_step
    query = select(metrics.c.step, metrics.c.timestamp, metrics.c.metrics).where(matches).order_by(metrics.c.step)
    if max_points is not None and _are_more(connection, matches, max_points):
        query = query.where(_downsampled(connection, job_number, matches, max_points))
    if limit is not None:
        query = query.limit(limit)
    return [MetricRecord(*row) for row in connection.execute(query)]


def count(connection: Connection) -> int:
    """Return the number of rows of all jobs."""
    return int(connection.execute(select(func.coalesce(func.sum(jobs.c.metric_rows), 0))).scalar_one())


def total(connection: Connection, job_number: int) -> int:
    """Return the number of rows of a job."""
    return int(connection.execute(select(jobs.c.metric_rows).where(jobs.c.number == job_number)).scalar_one())


def _values(job_number: int, row: MetricRecord) -> dict[str, Any]:
    evaluated = any(name.startswith("eval_") for name in row.metrics)
    # `asdict` would copy each value, which took half the time of ingesting a long log.
    values = {"step": row.step, "timestamp": row.timestamp, "metrics": row.metrics}
    return {"job_number": job_number, "evaluated": evaluated, **values}


def _are_more(connection: Connection, matches: ColumnElement[bool], than: int) -> bool:
    some = select(metrics.c.step).where(matches).limit(than + 1).subquery()
    return connection.execute(select(func.count()).select_from(some)).scalar_one() > than


def _downsampled(
    connection: Connection, job_number: int, matches: ColumnElement[bool], points: int
) -> ColumnElement[bool]:
    """Return a condition that selects `points` rows of those that match."""
    # The other rows include the first and the last.
    limit = max(0, points - 2) // 2
    evaluated = matches & metrics.c.evaluated
    if not limit:
        return metrics.c.step.in_(_spread(connection, job_number, matches, points))
    if _are_more(connection, evaluated, limit):
        evaluations, count = _spread(connection, job_number, evaluated, limit, evaluated=True), limit
    else:
        evaluations = select(metrics.c.step).where(evaluated)
        count = len(list(connection.execute(evaluations)))
    others = _spread(connection, job_number, matches, points - count)
    # One set, so that rows are found by the index; with an OR all rows would be read.
    return metrics.c.step.in_(union(others, evaluations))


def _spread(
    connection: Connection, job_number: int, matches: ColumnElement[bool], points: int, *, evaluated: bool = False
) -> Select[tuple[int]]:
    """Return evenly spaced steps from the first to the last, each moved to the next step that has a row.

    With `evaluated`, to the next step that has an evaluation. Each step is looked up by itself, so that the time grows
    with the number of points rather than rows.
    """
    ends = (func.min(metrics.c.step), func.max(metrics.c.step))
    first, last = (connection.execute(select(end).where(matches)).scalar_one() for end in ends)
    if points == 1:
        return select(literal(last))
    point = select(literal(0, BigInteger).label("number")).cte(recursive=True)
    point = point.union_all(select(point.c.number + 1).where(point.c.number < points - 1))
    # (2ab + c) // 2c is ab / c, rounded to a whole step.
    wanted = first + (2 * point.c.number * (last - first) + points - 1) // (2 * (points - 1))
    row = metrics.alias()
    found = select(func.min(row.c.step)).where(row.c.job_number == job_number, row.c.step >= wanted)
    if evaluated:
        found = found.where(row.c.evaluated)
    return select(found.correlate(point).scalar_subquery()).select_from(point)


def _between(connection: Connection, job_number: int, first: int, last: int) -> dict[int, MetricRecord]:
    """Return the rows from step `first` to step `last` by step."""
    query = select(metrics.c.step, metrics.c.timestamp, metrics.c.metrics).where(
        metrics.c.job_number == job_number, metrics.c.step.between(first, last)
    )
    return {row.step: MetricRecord(*row) for row in connection.execute(query)}


def _add_to_row_count(connection: Connection, job_number: int, rows: int) -> None:
    changed = {"metric_rows": jobs.c.metric_rows + rows}
    connection.execute(update(jobs).where(jobs.c.number == job_number).values(changed))
