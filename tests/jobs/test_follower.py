from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from merlina.jobs.follower import follow
from merlina.jobs.hub import Hub
from merlina.jobs.moves import Moves
from merlina.runs import EventLog, RunFolder
from merlina.storage import jobs
from merlina.storage.database import Database
from merlina.storage.jobs import JobRecord

Event = tuple[str, dict[str, Any]]


@dataclass(frozen=True)
class Runs:
    """Jobs that save into `/m/o`, and their logs."""

    root: Path
    database: Database
    hub: Hub

    def add(self, job_id: str) -> JobRecord:
        (self.root / job_id).mkdir()
        values = {
            "job_id": job_id, "state": "training", "priority": 3, "config": {}, "base_model": "m", "output_name": "o",
            "target_dir": "/m/o", "created_at": 1.0, "updated_at": 1.0,
        }  # fmt: skip
        with self.database.write() as connection:
            return jobs.add(connection, values)

    def tell(self, job_id: str, *events: Event) -> None:
        log = EventLog(RunFolder(self.root / job_id).events_file)
        for kind, fields in events:
            log.append(kind, **fields)
        log.close()

    def follow(self, record: JobRecord) -> JobRecord:
        return follow(Moves(self.database, self.hub), record, RunFolder(self.root / record.job_id))

    def folder_of(self, record: JobRecord) -> str | None:
        with self.database.read() as connection:
            found = jobs.get(connection, record.job_id)
        assert found is not None
        return found.output_dir


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[Runs]:
    database = Database(f"sqlite:///{tmp_path / 'merlina.db'}")
    database.migrate()
    yield Runs(tmp_path, database, Hub())
    database.close()


SAVED: Event = ("ended", {"state": "completed", "output_dir": "/m/o"})


def set_aside(kept_as: str) -> Event:
    return "set_aside", {"folder": "/m/o", "kept_as": kept_as}


def test_a_model_is_moved_once_however_often_its_log_is_read(runs: Runs) -> None:
    first, second = runs.add("first"), runs.add("second")
    runs.tell("first", SAVED)
    runs.follow(first)
    runs.tell("second", set_aside("/m/o.before-second"), SAVED)
    runs.follow(second)
    # As a pass would that had looked before the other took the events in.
    runs.follow(second)
    assert (runs.folder_of(first), runs.folder_of(second)) == ("/m/o.before-second", "/m/o")


def test_a_model_that_is_set_aside_while_it_is_uploaded_stays_there(runs: Runs) -> None:
    first, second = runs.add("first"), runs.add("second")
    runs.tell("first", ("state", {"state": "uploading", "output_dir": "/m/o"}))
    first = runs.follow(first)
    runs.tell("second", set_aside("/m/o.before-second"), SAVED)
    runs.follow(second)
    runs.tell("first", SAVED)
    assert runs.follow(first).state == "completed"
    assert (runs.folder_of(first), runs.folder_of(second)) == ("/m/o.before-second", "/m/o")


def test_a_run_that_sets_its_own_earlier_result_aside_and_then_fails_has_it_there(runs: Runs) -> None:
    record = runs.add("only")
    runs.tell("only", ("state", {"state": "saving", "output_dir": "/m/o"}))
    record = runs.follow(record)
    runs.tell("only", set_aside("/m/o.before-only"), ("ended", {"state": "failed", "error": "the disk is full"}))
    assert runs.follow(record).output_dir == "/m/o.before-only"


def test_a_run_that_sets_its_own_earlier_result_aside_and_saves_again_has_the_newer_one(runs: Runs) -> None:
    record = runs.add("only")
    runs.tell("only", ("state", {"state": "saving", "output_dir": "/m/o"}))
    record = runs.follow(record)
    runs.tell("only", set_aside("/m/o.before-only"), SAVED)  # both are read at once
    assert runs.follow(record).output_dir == "/m/o"
    assert runs.folder_of(record) == "/m/o"


def test_of_two_that_saved_in_one_folder_the_last_has_it_in_whichever_order_they_are_heard_of(runs: Runs) -> None:
    early, late = runs.add("early"), runs.add("late")
    # An older version told of nothing that it set aside.
    runs.tell("early", SAVED)
    runs.tell("late", SAVED)
    runs.follow(late)
    assert runs.follow(early).output_dir is None
    assert (runs.folder_of(early), runs.folder_of(late)) == (None, "/m/o")
