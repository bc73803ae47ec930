"""The one door for changes of a job's state.

Each change is checked against the table of legal moves, written by an update that is guarded by the state it was
decided on, and published once it is committed. A request that was decided on an outdated record never overwrites
what another request did: it is refused with the job's current state.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Connection

from merlina.domain.job_states import is_legal
from merlina.errors import ConflictError
from merlina.jobs.broadcast import Broadcast
from merlina.schemas.events import Event
from merlina.storage import jobs
from merlina.storage.database import Database
from merlina.storage.jobs import JobRecord

Changes = Mapping[str, Any]
InTransaction = Callable[[Connection], None]


@dataclass(frozen=True)
class Moves:
    """Writes jobs' rows and publishes them; `clock` gives epoch seconds, for timestamps only."""

    database: Database
    broadcast: Broadcast
    clock: Callable[[], float] = time.time

    def add(self, values: Changes, check: InTransaction | None = None) -> JobRecord:
        """Insert a queued job unless `check` raises. Raises sqlalchemy.exc.IntegrityError if its job_id is taken."""
        now = self.clock()
        with self.database.write() as connection:
            if check is not None:
                check(connection)
            record = jobs.add(connection, {**values, "state": "queued", "created_at": now, "updated_at": now})
        self.broadcast.publish(record)
        return record

    def operate(
        self,
        record: JobRecord,
        decide: Callable[[JobRecord], Changes],
        before_commit: InTransaction | None = None,
    ) -> tuple[JobRecord, JobRecord]:
        """Carry out a client's operation on a job; return the record it was decided on and the one it led to.

        `decide` returns the changes for a record, none if there is nothing to do. It is called again if only the run
        or the scheduler moved the job meanwhile. Raises ConflictError if another request changed it.
        """
        while True:
            changes = decide(record)
            if not changes:
                return record, record
            changed = self.change(record, {**changes, "operations": record.operations + 1}, before_commit)
            if changed is not None:
                return record, changed
            record = self._unless_changed_by_request(record)

    def change(
        self,
        record: JobRecord,
        changes: Changes,
        before_commit: InTransaction | None = None,
        *,
        only_if: Callable[[Connection], bool] | None = None,
    ) -> JobRecord | None:
        """Apply changes decided on `record`; return None if it has moved on since, or if `only_if` is not true.

        `before_commit` is for checks, and for what a server that is killed in between must find done with an
        unchanged row; whatever it raises undoes the change.
        """
        state = changes.get("state", record.state)
        values = {**changes, "updated_at": self.clock()}
        if state != record.state:
            assert is_legal(record.state, state), f"{record.job_id}: {record.state} → {state} is not a legal move"
            # No worker lives that could number this step of the job: the server does, and the next worker goes on.
            values["last_seq"] = record.last_seq + 1
        with self.database.write() as connection:
            if only_if is not None and not only_if(connection):
                return None
            changed = jobs.change(connection, record, values)
            if changed is not None and before_commit is not None:
                before_commit(connection)
        if changed is not None:
            self.broadcast.publish(changed)
        return changed

    def take_in(
        self,
        record: JobRecord,
        events: list[Event],
        offset: int,
        apply: Callable[[Connection, JobRecord], JobRecord],
        settle: Callable[[Connection, JobRecord, JobRecord], None],
    ) -> JobRecord | None:
        """Apply events read from `record.log_offset` to `offset`, exactly once; return None if others took them in.

        `apply` returns the current record after the events and writes what they change in other tables; `settle`
        writes what follows for other jobs, from the records before and after, once this job's row is written.
        """
        with self.database.write() as connection:
            current = jobs.get(connection, record.job_id, to_change=True)
            if current is None or current.log_offset != record.log_offset:
                return None
            folded = apply(connection, current)
            before, after = asdict(current), asdict(folded)
            values = {name: value for name, value in after.items() if value != before[name]}
            jobs.change(connection, current, {**values, "log_offset": offset})
            settle(connection, current, folded)
            taken = jobs.get(connection, record.job_id)
            assert taken is not None
        self.broadcast.publish(taken, events)
        return taken

    def remove(self, record: JobRecord) -> None:
        """Delete a job's row with its metrics and forget its readers."""
        with self.database.write() as connection:
            jobs.remove(connection, record.job_id)
        self.broadcast.forget(record.job_id)

    def _unless_changed_by_request(self, record: JobRecord) -> JobRecord:
        with self.database.read() as connection:
            current = jobs.get(connection, record.job_id)
        if current is None or current.deleting:
            raise ConflictError(f"Job {record.job_id} was deleted by another request at the same time")
        if current.operations != record.operations:
            raise ConflictError(
                f"Job {record.job_id} was changed by another request at the same time; it is "
                f"{describe_state(current)} now"
            )
        return current


def describe_state(record: JobRecord) -> str:
    """Return the state in words, with the stop or pause that was requested but not reached yet."""
    if record.is_running and record.stop_requested_at is not None:
        return f"{record.state} and asked to stop"
    if record.is_running and record.pause_requested_at is not None:
        return f"{record.state} and asked to pause"
    return record.state
