"""Only `jobs/moves` writes a job's state; of two requests that were decided on the same record one is refused."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlalchemy import Connection

import merlina
from merlina.errors import ConflictError, IllegalTransitionError
from merlina.jobs.broadcast import Broadcast
from merlina.jobs.moves import Moves
from merlina.schemas.events import Event, Progress, StateChanged
from merlina.storage import jobs
from merlina.storage.database import Database
from merlina.storage.jobs import JobRecord

SOURCES = Path(merlina.__file__).parent
WRITERS = {"add", "change", "remove"}
STATEMENTS = {"storage/jobs.py", "storage/metrics.py"}


@dataclass
class Jobs:
    """Jobs in a database of their own."""

    database: Database
    moves: Moves

    def add(self, job_id: str) -> JobRecord:
        return self.moves.add(
            {
                "job_id": job_id, "priority": 3, "config": {}, "base_model": "m", "output_name": "o",
                "target_dir": "/m/o",
            }
        )  # fmt: skip


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Jobs]:
    database = Database(f"sqlite:///{tmp_path / 'merlina.db'}")
    database.migrate()
    yield Jobs(database, Moves(database, Broadcast()))
    database.close()


def calls_of(tree: ast.Module, owner: str, names: set[str]) -> set[str]:
    """Return which of `owner.name(…)` a module calls."""
    return {
        node.func.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id == owner
        and node.func.attr in names
    }


def imports_of(tree: ast.Module, module: str) -> set[str]:
    """Return which names a module imports from another one."""
    found = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module == module]
    return {alias.name for node in found for alias in node.names}


def statements_on_jobs(tree: ast.Module) -> set[str]:
    """Return which of `insert(jobs)`, `update(jobs)` and `delete(jobs)` a module builds."""
    return {
        node.func.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in {"insert", "update", "delete"}
        and node.args
        and ast.unparse(node.args[0]) in ("jobs", "tables.jobs")
    }


def test_no_other_module_writes_a_state() -> None:
    sources = {str(path.relative_to(SOURCES)): ast.parse(path.read_text()) for path in SOURCES.rglob("*.py")}
    assert {name for name, tree in sources.items() if calls_of(tree, "jobs", WRITERS)} == {"jobs/moves.py"}
    # No module can call the writers, or build statements on the table, under another name.
    assert not [name for name, tree in sources.items() if imports_of(tree, "merlina.storage.jobs") & WRITERS]
    tables = {name for name, tree in sources.items() if imports_of(tree, "merlina.storage.tables") & {"jobs"}}
    assert all(name.startswith("storage/") for name in tables)
    assert {name for name, tree in sources.items() if statements_on_jobs(tree)} == STATEMENTS
    # Outside `change`, statements name their columns, and none is the state.
    for name in STATEMENTS:
        written = {
            keyword.arg
            for node in ast.walk(sources[name])
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "values"
            for keyword in node.keywords
        }
        assert "state" not in written


def test_of_two_requests_decided_on_one_record_the_second_is_refused_with_the_state(store: Jobs) -> None:
    record = store.add("a")
    _, paused = store.moves.execute_command(record, lambda _: {"state": "paused"})
    assert paused.state == "paused"
    with pytest.raises(ConflictError, match="changed by another request at the same time; it is paused now"):
        store.moves.execute_command(record, lambda _: {"state": "cancelled"})
    store.moves.execute_command(paused, lambda _: {"deleting": True})
    with pytest.raises(ConflictError, match="deleted by another request"):
        store.moves.execute_command(paused, lambda _: {"state": "queued"})


def test_a_request_is_decided_again_if_only_the_scheduler_moved_the_job(store: Jobs) -> None:
    record = store.add("a")
    assert store.moves.change(record, {"state": "initializing"}) is not None
    decided_on: list[str] = []

    def decide(current: JobRecord) -> dict[str, object]:
        decided_on.append(current.state)
        return {"state": "cancelled"} if current.state == "queued" else {"stop_requested_at": 1.0}

    before, after = store.moves.execute_command(record, decide)
    assert decided_on == ["queued", "initializing"]
    assert (before.state, after.state, after.stop_requested_at) == ("initializing", "initializing", 1.0)


def test_an_illegal_move_is_never_written(store: Jobs) -> None:
    record = store.add("a")
    with pytest.raises(IllegalTransitionError, match="Job a is queued and cannot become completed"):
        store.moves.change(record, {"state": "completed"})
    with store.database.read() as connection:
        assert jobs.get(connection, "a") == record


def test_each_state_that_the_server_sets_has_a_number_of_its_own(store: Jobs) -> None:
    record = store.add("a")
    seen = [record.last_seq]
    for state in ("paused", "queued", "initializing"):
        moved = store.moves.change(record, {"state": state})
        assert moved is not None
        record = moved
        seen.append(record.last_seq)
    assert seen == [0, 1, 2, 3]
    assert store.moves.broadcast.latest("a") == record


def test_what_must_be_done_before_the_commit_undoes_the_change_if_it_fails(store: Jobs) -> None:
    record = store.add("a")

    def fail(_: Connection) -> None:
        raise OSError("no")

    with pytest.raises(OSError, match="no"):
        store.moves.change(record, {"state": "paused"}, fail)
    with store.database.read() as connection:
        assert jobs.get(connection, "a") == record


def ingest(store: Jobs, record: JobRecord, *events: Event) -> JobRecord | None:
    numbered = [event.model_copy(update={"seq": seq, "time": 1.0}) for seq, event in enumerate(events, start=1)]
    offset = record.log_offset + len(events)
    return store.moves.ingest(record, numbered, offset, skipped=0, write_related=lambda *records: None)


def test_an_event_with_an_illegal_transition_is_skipped_and_counted_and_the_others_are_applied(store: Jobs) -> None:
    record = store.moves.change(store.add("a"), {"state": "initializing"})
    assert record is not None
    progress = Progress(step=3, total_steps=9)
    changed = ingest(store, record, StateChanged(state="training"), StateChanged(state="loading_model"), progress)
    assert changed is not None
    assert (changed.state, changed.step, changed.skipped_lines) == ("training", 3, 1)
    assert store.moves.broadcast.latest("a") == changed


def test_events_are_applied_once(store: Jobs) -> None:
    record = store.moves.change(store.add("a"), {"state": "initializing"})
    assert record is not None
    assert ingest(store, record, StateChanged(state="training")) is not None
    assert ingest(store, record, StateChanged(state="training")) is None


def test_a_restored_job_is_published(store: Jobs) -> None:
    values = {
        "job_id": "a", "state": "paused", "priority": 3, "config": {}, "base_model": "m", "output_name": "o",
        "target_dir": "/m/o", "created_at": 1.0, "updated_at": 1.0,
    }  # fmt: skip
    record = store.moves.restore(values)
    assert store.moves.broadcast.latest("a") == record
