"""Queries on jobs. Each takes the connection of a `Database.read()` or `Database.write()`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy import (
    ColumnElement,
    Connection,
    Text,
    TextClause,
    cast,
    delete,
    func,
    insert,
    literal,
    select,
    text,
    update,
)

from merlina.domain.job_states import END_STATES, RUN_STATES, WAITING_STATES, JobState
from merlina.storage.tables import jobs


@dataclass(frozen=True, kw_only=True)
class JobRecord:
    """One row of `jobs`. Times are epoch seconds; `config` has no tokens.

    `number` is the primary key and the age in the queue. `attempt` counts the attempts, and `attempt_seen` is the last
    one of which an event was ingested. `target_dir` is where the model will be saved, `output_dir` where it is.
    `gpu_memory` is in GiB.
    """

    number: int
    job_id: str
    state: JobState
    priority: int
    config: dict[str, Any] = field(repr=False)
    base_model: str
    output_name: str
    target_dir: str
    dataset_file: str | None
    attempt: int
    attempt_seen: int
    gpus: list[int] | None
    progress: float
    step: int | None
    total_steps: int | None
    loss: float | None
    eval_loss: float | None
    learning_rate: float | None
    gpu_memory: float | None
    last_checkpoint: int | None
    error: str | None
    output_dir: str | None
    final_metrics: dict[str, float | None] | None
    wandb_url: str | None
    created_at: float
    updated_at: float
    started_at: float | None
    ended_at: float | None
    stop_requested_at: float | None
    pause_requested_at: float | None
    preempted_by: str | None
    preemptible: bool
    memory_needed_mb: int | None
    worker: str | None
    deleting: bool
    last_seq: int
    log_offset: int
    command_count: int
    skipped_lines: int

    @property
    def is_ended(self) -> bool:
        return self.state in END_STATES

    @property
    def is_running(self) -> bool:
        return not self.is_ended and self.state not in WAITING_STATES

    @property
    def has_begun(self) -> bool:
        """Whether the worker of the current attempt wrote its first event, so that a resume counts as a new attempt."""
        return self.attempt_seen >= self.attempt


_FIELDS = [field.name for field in fields(JobRecord)]
# Labelled with the field, because a column may have another name in the database.
_COLUMNS = [jobs.c[name].label(name) for name in _FIELDS]
# A list of states, so that the index is used: there may be a hundred thousand other jobs.
_RUNNING = jobs.c.state.in_(RUN_STATES)
_QUEUE_ORDER = (jobs.c.priority.desc(), jobs.c.number)


def add(connection: Connection, values: dict[str, Any]) -> JobRecord:
    """Insert a job. Raises sqlalchemy.exc.IntegrityError if its job_id is taken. For `jobs.moves` only."""
    connection.execute(insert(jobs).values(values))
    record = get(connection, values["job_id"])
    assert record is not None
    return record


def get(connection: Connection, job_id: str, *, for_update: bool = False) -> JobRecord | None:
    """Return the job, if it exists; `for_update` locks its row until the end of the transaction."""
    query = select(*_COLUMNS).where(jobs.c.job_id == job_id)
    # SQLite has no row locks and needs none: it has one writer.
    row = connection.execute(query.with_for_update() if for_update else query).one_or_none()
    return JobRecord(**row._mapping) if row else None


def running(connection: Connection) -> list[JobRecord]:
    """Return all running jobs, oldest first."""
    return _records(connection, _RUNNING)


def log_offsets_of_idle_jobs(connection: Connection) -> dict[str, int]:
    """Return by id the offset up to which the event log of each job that is not running was ingested."""
    query = select(jobs.c.job_id, jobs.c.log_offset).where(
        ~jobs.c.deleting & jobs.c.state.in_((*WAITING_STATES, *END_STATES))
    )
    return dict(connection.execute(query).tuples().all())


def queued(connection: Connection) -> list[JobRecord]:
    """Return the queued jobs in queue order."""
    rows = connection.execute(select(*_COLUMNS).where(jobs.c.state == "queued").order_by(*_QUEUE_ORDER))
    return [JobRecord(**row._mapping) for row in rows]


def queue_position(connection: Connection, record: JobRecord) -> int:
    """Return the job's position in the queue; 1 is the next to start."""
    before = (jobs.c.priority > record.priority) | (
        (jobs.c.priority == record.priority) & (jobs.c.number < record.number)
    )
    query = select(func.count()).select_from(jobs).where((jobs.c.state == "queued") & before)
    return 1 + int(connection.execute(query).scalar_one())


class Counts(NamedTuple):
    """Numbers of jobs. All but `occupied_slots` leave out jobs that are being deleted."""

    total: int
    queued: int
    running: int
    paused: int
    occupied_slots: int
    """Running jobs, including deleted ones with a worker that has not ended yet."""


def counts(connection: Connection) -> Counts:
    """Return how many jobs there are, in all and per kind."""
    kept = ~jobs.c.deleting
    query = select(
        func.count().filter(kept),
        func.count().filter(kept & (jobs.c.state == "queued")),
        func.count().filter(kept & _RUNNING),
        func.count().filter(kept & (jobs.c.state == "paused")),
        func.count().filter(_RUNNING),
    ).select_from(jobs)
    return Counts(*connection.execute(query).one())


def counts_by_state(connection: Connection) -> dict[JobState, int]:
    """Return the number of jobs per state, without states that no job is in."""
    query = select(jobs.c.state, func.count()).where(~jobs.c.deleting).group_by(jobs.c.state)
    return {state: number for state, number in connection.execute(query).tuples()}  # noqa: C416


class Summary(NamedTuple):
    """The part of a job that a list of all jobs shows."""

    state: JobState
    progress: float
    stop_requested_at: float | None
    pause_requested_at: float | None


def summaries(connection: Connection) -> dict[str, Summary]:
    """Return a summary of every job by id, newest first."""
    columns = (jobs.c[name] for name in Summary._fields)
    query = select(jobs.c.job_id, *columns).where(~jobs.c.deleting).order_by(jobs.c.number.desc())
    return {job_id: Summary(*shown) for job_id, *shown in connection.execute(query)}


def all_ids(connection: Connection) -> set[str]:
    """Return the ids of all jobs, including those that are being deleted."""
    return set(connection.execute(select(jobs.c.job_id)).scalars())


def ids_in(connection: Connection, state: JobState) -> set[str]:
    """Return the ids of the jobs in a state, including those that are being deleted."""
    return set(connection.execute(select(jobs.c.job_id).where(jobs.c.state == state)).scalars())


def page(connection: Connection, state: JobState | None, limit: int, offset: int) -> tuple[list[JobRecord], int]:
    """Return one page of jobs, newest first, and the number of matches on all pages."""
    matches = ~jobs.c.deleting if state is None else ~jobs.c.deleting & (jobs.c.state == state)
    total = connection.execute(select(func.count()).select_from(jobs).where(matches)).scalar_one()
    query = select(*_COLUMNS).where(matches).order_by(jobs.c.number.desc()).limit(limit).offset(offset)
    return [JobRecord(**row._mapping) for row in connection.execute(query)], total


def waiting_for_deletion(connection: Connection) -> list[JobRecord]:
    """Return the jobs that are to be deleted and are not running."""
    # Must match the condition of the partial index literally; otherwise SQLite reads all rows.
    condition = text("deleting = 1") if connection.dialect.name == "sqlite" else jobs.c.deleting
    return [record for record in _records(connection, condition) if not record.is_running]


def preempted(connection: Connection) -> list[JobRecord]:
    """Return paused jobs that do not stay paused, because they were preempted."""
    return _records(connection, (jobs.c.state == "paused") & jobs.c.preempted_by.is_not(None))


def owner_of_model(connection: Connection, output_dir: str) -> str | None:
    """Return the id of the job that owns the model in a folder: the last one that saved there."""
    # A job that still uploads its model has not ended.
    saved_at = func.coalesce(jobs.c.ended_at, jobs.c.updated_at)
    query = select(jobs.c.job_id).where(jobs.c.output_dir == output_dir).order_by(saved_at.desc()).limit(1)
    return connection.execute(query).scalar_one_or_none()


@dataclass(frozen=True)
class SavedModel:
    """The model that an ended job saved. `saved_at` is in epoch seconds."""

    job_id: str
    output_name: str
    base_model: str
    output_dir: str
    saved_at: float


def saved_models(connection: Connection, name: str | None = None) -> list[SavedModel]:
    """Return the models of ended jobs, newest first: each folder's last one.

    With `name`, only those with this output name, job id or base model.
    """
    saved_at = func.coalesce(jobs.c.ended_at, jobs.c.updated_at)
    columns = (jobs.c.job_id, jobs.c.output_name, jobs.c.base_model, jobs.c.output_dir, saved_at)
    saved = jobs.c.output_dir.is_not(None) & jobs.c.state.in_(END_STATES)
    if name is not None:
        saved &= (jobs.c.output_name == name) | (jobs.c.job_id == name) | (jobs.c.base_model == name)
    newest: dict[str, SavedModel] = {}
    for row in connection.execute(select(*columns).where(saved).order_by(saved_at.desc())):
        newest.setdefault(row.output_dir, SavedModel(*row))
    return list(newest.values())


def move_model(connection: Connection, folder: str, kept_as: str, *, by: str | None = None) -> None:
    """Record that `folder` was moved to `kept_as`: with its job's model, if it is a job's, and with those inside it.

    `by` is the job that moved it; the caller writes its row.
    """
    owner = owner_of_model(connection, folder)
    owner = None if owner == by else owner
    connection.execute(update(jobs).where(jobs.c.job_id == owner).values(output_dir=kept_as))
    inside = jobs.c.output_dir.startswith(f"{folder}/", autoescape=True)
    moved = literal(kept_as) + func.substr(jobs.c.output_dir, len(folder) + 1)
    connection.execute(update(jobs).where(inside).values(output_dir=moved))


def set_output_dir(connection: Connection, job_id: str, output_dir: str | None) -> None:
    connection.execute(update(jobs).where(jobs.c.job_id == job_id).values(output_dir=output_dir))


def take_output_dir(connection: Connection, output_dir: str, job_id: str) -> None:
    """Assign the folder to the job that has just saved there. Models of other jobs were removed from it."""
    others = (jobs.c.output_dir == output_dir) & (jobs.c.job_id != job_id)
    connection.execute(update(jobs).where(others).values(output_dir=None))


def jobs_with_nested_models(connection: Connection, target_dir: str, *, excluding: str | None) -> list[JobRecord]:
    """Return jobs other than `excluding` that have or may save a model inside or around `target_dir`."""

    def is_around(column: ColumnElement[str | None]) -> ColumnElement[bool]:
        return column.startswith(f"{target_dir}/", autoescape=True) | (column == str(Path(target_dir).parent))

    has_one = is_around(jobs.c.output_dir)
    may_save = is_around(jobs.c.target_dir) & jobs.c.state.not_in(END_STATES)
    return _records(connection, ~jobs.c.deleting & (jobs.c.job_id != (excluding or "")) & (has_one | may_save))


def needing_data(connection: Connection, dataset_id: str) -> list[JobRecord]:
    """Return jobs with a data file that may be that of an upload, and that may still read it.

    These are jobs that have not ended or have a checkpoint to resume from.
    """
    resumable = jobs.c.last_checkpoint.is_not(None) & (jobs.c.state != "completed")
    still = jobs.c.state.not_in(END_STATES) | resumable
    names_it = cast(jobs.c.config, Text).contains(dataset_id, autoescape=True)
    # A file may be read through a link, so that its path does not name the upload.
    return _records(connection, (names_it | jobs.c.dataset_file.is_not(None)) & ~jobs.c.deleting & still)


def completed_with(connection: Connection, base_model: str, limit: int) -> list[JobRecord]:
    """Return completed jobs with that base model, newest first."""
    matches = (jobs.c.base_model == base_model) & (jobs.c.state == "completed") & ~jobs.c.deleting
    query = select(*_COLUMNS).where(matches).order_by(jobs.c.number.desc()).limit(limit)
    return [JobRecord(**row._mapping) for row in connection.execute(query)]


def change(connection: Connection, record: JobRecord, values: Mapping[str, Any]) -> JobRecord | None:
    """Update a job if it is unchanged since `record` was read; return None otherwise. For `jobs.moves` only."""
    unchanged = (
        (jobs.c.job_id == record.job_id)
        & (jobs.c.state == record.state)
        & (jobs.c.attempt == record.attempt)
        & (jobs.c.command_count == record.command_count)
    )
    if connection.execute(update(jobs).where(unchanged).values(**values)).rowcount == 0:
        return None
    return get(connection, record.job_id)


def remove(connection: Connection, job_id: str) -> None:
    """Delete a job and, by the foreign key, its metrics. For `jobs.moves` only."""
    connection.execute(delete(jobs).where(jobs.c.job_id == job_id))


def _records(connection: Connection, condition: ColumnElement[bool] | TextClause) -> list[JobRecord]:
    rows = connection.execute(select(*_COLUMNS).where(condition).order_by(jobs.c.number))
    return [JobRecord(**row._mapping) for row in rows]
