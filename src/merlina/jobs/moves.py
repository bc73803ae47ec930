"""Moves: changes of jobs' records. This is the only module that writes a job's state.

A move is checked against the transition table (`domain/job_states`), written by an update that is guarded by the
record it was decided on, and published after the commit. A command that was decided on an outdated record never
overwrites the change of another command: it is refused with the job's current state.

Two columns are also written elsewhere: `output_dir` by `storage.jobs.move_model`, `set_output_dir` and
`take_output_dir`, for models of other jobs and after a recovery, and `metric_rows` together with the rows it counts.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

from sqlalchemy import Connection

from merlina.domain.job_states import is_legal
from merlina.errors import ConflictError, IllegalTransitionError
from merlina.jobs.broadcast import Broadcast
from merlina.jobs.fold import fold
from merlina.schemas.events import Event
from merlina.storage import jobs
from merlina.storage.database import Database
from merlina.storage.jobs import JobRecord

_log = logging.getLogger(__name__)
_Result = TypeVar("_Result", JobRecord, JobRecord | None)
Changes = Mapping[str, Any]
InTransaction = Callable[[Connection], None]


@dataclass(frozen=True)
class Moves:
    """Makes moves: writes job records and publishes them. `clock` returns epoch seconds, for timestamps only."""

    database: Database
    broadcast: Broadcast
    clock: Callable[[], float] = time.time

    def add(self, values: Changes, check: InTransaction | None = None) -> JobRecord:
        """Insert a queued job unless `check` raises. Raises sqlalchemy.exc.IntegrityError if its job_id is taken."""
        now = self.clock()

        def write(connection: Connection) -> JobRecord:
            if check is not None:
                check(connection)
            return jobs.add(connection, {**values, "state": "queued", "created_at": now, "updated_at": now})

        return self._commit(write)

    def restore(self, values: Changes) -> JobRecord:
        """Insert a job that the database lost; the events of its log then bring it to its state."""
        return self._commit(lambda connection: jobs.add(connection, dict(values)))

    def execute_command(
        self,
        record: JobRecord,
        decide: Callable[[JobRecord], Changes],
        before_commit: InTransaction | None = None,
    ) -> tuple[JobRecord, JobRecord]:
        """Carry out a client's command on a job; return the record it was decided on and the resulting one.

        `decide` returns the changes for a record, or none if there is nothing to do. It is called again if only the
        run or the scheduler changed the job meanwhile. Raises ConflictError if another command changed it.
        """
        while True:
            changes = decide(record)
            if not changes:
                return record, record
            changed = self.change(record, {**changes, "command_count": record.command_count + 1}, before_commit)
            if changed is not None:
                return record, changed
            record = self._read_unless_changed_by_command(record)

    def change(
        self,
        record: JobRecord,
        changes: Changes,
        before_commit: InTransaction | None = None,
        *,
        only_if: Callable[[Connection], bool] | None = None,
    ) -> JobRecord | None:
        """Apply changes decided on `record`; return None if the job has changed since, or if `only_if` is false.

        `before_commit` makes checks and writes files that must exist if the server is killed after the commit; an
        exception in it undoes the change. Raises IllegalTransitionError.
        """
        state = changes.get("state", record.state)
        values = {**changes, "updated_at": self.clock()}
        if state != record.state:
            if not is_legal(record.state, state):
                raise IllegalTransitionError(f"Job {record.job_id} is {record.state} and cannot become {state}")
            # No worker is alive to number this transition, so it is numbered here; the next worker continues after it.
            values["last_seq"] = record.last_seq + 1

        def write(connection: Connection) -> JobRecord | None:
            if only_if is not None and not only_if(connection):
                return None
            changed = jobs.change(connection, record, values)
            if changed is not None and before_commit is not None:
                before_commit(connection)
            return changed

        return self._commit(write)

    def ingest(
        self,
        record: JobRecord,
        events: Sequence[Event],
        offset: int,
        *,
        skipped: int,
        write_related: Callable[[Connection, JobRecord, JobRecord], None],
    ) -> JobRecord | None:
        """Apply events read from `record.log_offset` to `offset`, exactly once; return None if that was done already.

        `skipped` lines of that part were not events. An event with an illegal transition is skipped as well.
        `write_related` gets the records before and after the events and writes what they change in other rows.
        """

        def write(connection: Connection) -> JobRecord | None:
            current = jobs.get(connection, record.job_id, for_update=True)
            if current is None or current.log_offset != record.log_offset:
                return None
            after = _fold_all(replace(current, skipped_lines=current.skipped_lines + skipped), events)
            write_related(connection, current, after)
            old = asdict(current)
            values = {name: value for name, value in asdict(after).items() if value != old[name]}
            return jobs.change(connection, current, {**values, "log_offset": offset})

        return self._commit(write, events)

    def remove(self, record: JobRecord) -> None:
        """Delete a job's row with its metrics, and notify its subscribers."""
        with self.database.write() as connection:
            jobs.remove(connection, record.job_id)
        self.broadcast.discard_channel(record.job_id)

    def _commit(self, write: Callable[[Connection], _Result], events: Sequence[Event] = ()) -> _Result:
        """Run `write` in a transaction, and publish its record once that is committed."""
        with self.database.write() as connection:
            record = write(connection)
        if record is not None:
            self.broadcast.publish(record, events)
        return record

    def _read_unless_changed_by_command(self, record: JobRecord) -> JobRecord:
        with self.database.read() as connection:
            current = jobs.get(connection, record.job_id)
        if current is None or current.deleting:
            raise ConflictError(f"Job {record.job_id} was deleted by another request at the same time")
        if current.command_count != record.command_count:
            raise ConflictError(
                f"Job {record.job_id} was changed by another request at the same time; it is "
                f"{describe_state(current)} now"
            )
        return current


def describe_state(record: JobRecord) -> str:
    """Return the state in words, with a stop or pause that was requested and is not completed."""
    if record.is_running and record.stop_requested_at is not None:
        return f"{record.state} with a stop requested"
    if record.is_running and record.pause_requested_at is not None:
        return f"{record.state} with a pause requested"
    return record.state


def _fold_all(record: JobRecord, events: Sequence[Event]) -> JobRecord:
    for event in events:
        after = fold(record, event)
        if after.skipped_lines > record.skipped_lines:
            _log.warning(
                "%s: skipped event %d: %r is illegal for a job that is %s",
                record.job_id,
                event.seq,
                event.type,
                record.state,
            )
        record = after
    return record
