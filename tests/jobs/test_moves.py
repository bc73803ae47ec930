"""A job's state has one door, and of two requests that were decided on the same record one is refused."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlalchemy import Connection

import merlina
from merlina.errors import ConflictError
from merlina.jobs.broadcast import Broadcast
from merlina.jobs.moves import Moves
from merlina.storage import jobs
from merlina.storage.database import Database
from merlina.storage.jobs import JobRecord

SOURCES = Path(merlina.__file__).parent
WRITERS = {"add", "change", "remove"}
# What was lost with the database is written again as it was, before any job can move.
CALLED = {"jobs/moves.py", "jobs/recovery.py"}
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
def house(tmp_path: Path) -> Iterator[Jobs]:
    database = Database(f"sqlite:///{tmp_path / 'merlina.db'}")
    database.migrate()
    yield Jobs(database, Moves(database, Broadcast()))
    database.close()


def calls_of(tree: ast.Module, owner: str, names: set[str]) -> set[str]:
    """Which of `owner.name(…)` a module calls."""
    return {
        node.func.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id == owner
        and node.func.attr in names
    }


def statements_on_jobs(tree: ast.Module) -> set[str]:
    """Which of `insert(jobs)`, `update(jobs)` and `delete(jobs)` a module builds."""
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
    assert {name for name, tree in sources.items() if calls_of(tree, "jobs", WRITERS)} == CALLED
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


def test_of_two_requests_decided_on_one_record_the_second_is_refused_with_the_state(house: Jobs) -> None:
    record = house.add("a")
    _, paused = house.moves.operate(record, lambda _: {"state": "paused"})
    assert paused.state == "paused"
    with pytest.raises(ConflictError, match="changed by another request at the same time; it is paused now"):
        house.moves.operate(record, lambda _: {"state": "cancelled"})
    house.moves.operate(paused, lambda _: {"deleting": True})
    with pytest.raises(ConflictError, match="deleted by another request"):
        house.moves.operate(paused, lambda _: {"state": "queued"})


def test_a_request_is_decided_again_where_only_the_scheduler_moved_the_job(house: Jobs) -> None:
    record = house.add("a")
    assert house.moves.change(record, {"state": "initializing"}) is not None
    decided_on: list[str] = []

    def decide(current: JobRecord) -> dict[str, object]:
        decided_on.append(current.state)
        return {"state": "cancelled"} if current.state == "queued" else {"stop_requested_at": 1.0}

    before, after = house.moves.operate(record, decide)
    assert decided_on == ["queued", "initializing"]
    assert (before.state, after.state, after.stop_requested_at) == ("initializing", "initializing", 1.0)


def test_an_illegal_move_is_never_written(house: Jobs) -> None:
    record = house.add("a")
    with pytest.raises(AssertionError, match="queued → completed is not a legal move"):
        house.moves.change(record, {"state": "completed"})
    with house.database.read() as connection:
        assert jobs.get(connection, "a") == record


def test_each_state_that_the_server_sets_has_a_number_of_its_own(house: Jobs) -> None:
    record = house.add("a")
    seen = [record.last_seq]
    for state in ("paused", "queued", "initializing"):
        moved = house.moves.change(record, {"state": state})
        assert moved is not None
        record = moved
        seen.append(record.last_seq)
    assert seen == [0, 1, 2, 3]
    assert house.moves.broadcast.latest("a") == record


def test_what_must_be_done_before_the_commit_undoes_the_change_where_it_fails(house: Jobs) -> None:
    record = house.add("a")

    def fail(_: Connection) -> None:
        raise OSError("no")

    with pytest.raises(OSError, match="no"):
        house.moves.change(record, {"state": "paused"}, fail)
    with house.database.read() as connection:
        assert jobs.get(connection, "a") == record
