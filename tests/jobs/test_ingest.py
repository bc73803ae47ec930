from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from merlina.jobs.broadcast import Broadcast
from merlina.jobs.ingest import ingest_all
from merlina.jobs.moves import Moves
from merlina.jobs.supervisor.last_events import record_end
from merlina.run_folder.event_log import EventLog
from merlina.run_folder.folder import RunFolder
from merlina.schemas.events import EVENT
from merlina.storage import jobs
from merlina.storage.database import Database
from merlina.storage.jobs import JobRecord

Event = tuple[str, dict[str, Any]]


@dataclass(frozen=True)
class Runs:
    """Jobs that save into `/m/o`, and their logs."""

    root: Path
    database: Database
    broadcast: Broadcast

    def add(self, job_id: str) -> JobRecord:
        (self.root / job_id).mkdir()
        values = {
            "job_id": job_id, "state": "training", "priority": 3, "config": {}, "base_model": "m", "output_name": "o",
            "target_dir": "/m/o", "created_at": 1.0, "updated_at": 1.0,
        }  # fmt: skip
        with self.database.write() as connection:
            return jobs.add(connection, values)

    def append(self, job_id: str, *events: Event, after_seq: int = 0) -> None:
        log = EventLog(RunFolder(self.root / job_id).events_file, after_seq)
        for kind, fields in events:
            log.append(EVENT.validate_python({"type": kind, **fields}))
        log.close()

    def ingest(self, record: JobRecord) -> JobRecord:
        return ingest_all(Moves(self.database, self.broadcast), record, RunFolder(self.root / record.job_id))

    def folder_of(self, record: JobRecord) -> str | None:
        with self.database.read() as connection:
            found = jobs.get(connection, record.job_id)
        assert found is not None
        return found.output_dir


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[Runs]:
    database = Database(f"sqlite:///{tmp_path / 'merlina.db'}")
    database.migrate()
    yield Runs(tmp_path, database, Broadcast())
    database.close()


SAVED: Event = ("ended", {"state": "completed", "output_dir": "/m/o"})


def moved(kept_as: str) -> Event:
    return "moved", {"folder": "/m/o", "kept_as": kept_as}


def test_a_model_is_moved_once_however_often_its_log_is_read(runs: Runs) -> None:
    first, second = runs.add("first"), runs.add("second")
    runs.append("first", SAVED)
    runs.ingest(first)
    runs.append("second", moved("/m/o.before-second"), SAVED)
    runs.ingest(second)
    # A second cycle that read the row before the first one ingested the events.
    runs.ingest(second)
    assert (runs.folder_of(first), runs.folder_of(second)) == ("/m/o.before-second", "/m/o")


def test_a_model_that_is_moved_while_it_is_uploaded_stays_there(runs: Runs) -> None:
    first, second = runs.add("first"), runs.add("second")
    runs.append("first", ("state", {"state": "uploading", "output_dir": "/m/o"}))
    first = runs.ingest(first)
    runs.append("second", moved("/m/o.before-second"), SAVED)
    runs.ingest(second)
    runs.append("first", SAVED)
    assert runs.ingest(first).state == "completed"
    assert (runs.folder_of(first), runs.folder_of(second)) == ("/m/o.before-second", "/m/o")


def test_a_run_that_moves_its_own_earlier_result_and_then_fails_has_it_there(runs: Runs) -> None:
    record = runs.add("only")
    runs.append("only", ("state", {"state": "saving", "output_dir": "/m/o"}))
    record = runs.ingest(record)
    runs.append("only", moved("/m/o.before-only"), ("ended", {"state": "failed", "error": "the disk is full"}))
    assert runs.ingest(record).output_dir == "/m/o.before-only"


def test_a_run_that_moves_its_own_earlier_result_and_saves_again_has_the_newer_one(runs: Runs) -> None:
    record = runs.add("only")
    runs.append("only", ("state", {"state": "saving", "output_dir": "/m/o"}))
    record = runs.ingest(record)
    runs.append("only", moved("/m/o.before-only"), SAVED)  # both are read at once
    assert runs.ingest(record).output_dir == "/m/o"
    assert runs.folder_of(record) == "/m/o"


def test_of_two_that_saved_in_one_folder_the_last_to_report_has_it_even_if_the_clock_was_set_back(
    runs: Runs,
) -> None:
    """One job at a time owns a folder, so events are ingested in the order of saving; their times may be wrong."""
    second, first = runs.add("second"), runs.add("first")
    # The first model was removed by hand, so no event reports a rename.
    runs.append("second", SAVED)
    runs.append("first", SAVED)
    runs.ingest(first)
    assert runs.ingest(second).output_dir == "/m/o"
    assert (runs.folder_of(first), runs.folder_of(second)) == (None, "/m/o")


STEP: Event = ("progress", {"step": 3, "total_steps": 9})
DAMAGE = {
    "text": b"no event at all\n",
    "half a line": b'{"seq":99,"time":1.0,"type":"pro\n',
    "binary": bytes(range(256)) * 40 + b"\n",
    "fields of other types": b'{"seq":3,"time":1.0,"type":"progress","step":"many","total_steps":[]}\n',
    "no type": b'{"seq":3,"time":1.0}\n',
    "a number of a step that no database holds": b'{"seq":3,"time":1,"type":"progress","step":99999999999999999999}\n',
    "a time that no calendar has": b'{"seq":3,"time":1e300,"type":"progress","step":4,"total_steps":9}\n',
    "a repeated number": b'{"seq":2,"time":1.0,"type":"progress","step":8,"total_steps":9}\n',
    "a number from far ahead": b'{"seq":2000000000,"time":1.0,"type":"progress","step":8,"total_steps":9}\n',
    "a text that no encoding has": b'{"seq":3,"time":1.0,"type":"log","level":"info","message":"\\ud800"}\n',
    "a line longer than any event": b"x" * (3 << 20) + b"\n",
    "JSON of another kind": b"[1, 2, 3]\nnull\n17\n",
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
@pytest.mark.parametrize("continues", [True, False], ids=["in the middle", "as its last line"])
def test_a_damaged_line_is_skipped_and_counted_and_the_job_ends_as_it_did(
    runs: Runs, damage: bytes, continues: bool
) -> None:
    record = runs.add("a")
    folder = RunFolder(runs.root / "a")
    runs.append("a", ("started", {"attempt": 1, "pid": 1}), STEP)
    if not continues:
        record = runs.ingest(record)
    with folder.events_file.open("ab") as file:
        file.write(damage)
    if continues:
        last = ("ended", {"state": "failed", "error": "why"})
        runs.append("a", ("progress", {"step": 5, "total_steps": 9}), last, after_seq=2)
    else:
        record = runs.ingest(record)
        assert record_end(record, folder, "failed", "why")
    record = runs.ingest(record)
    assert (record.state, record.error, record.step) == ("failed", "why", 5 if continues else 3)
    assert record.skipped_lines >= 1
    assert record.log_offset == folder.events_file.stat().st_size


def test_a_log_whose_numbers_start_again_is_not_read_twice(runs: Runs) -> None:
    record = runs.add("a")
    runs.append("a", ("started", {"attempt": 1, "pid": 1}), STEP, ("progress", {"step": 7, "total_steps": 9}))
    file = RunFolder(runs.root / "a").events_file
    file.write_bytes(file.read_bytes() * 2)
    record = runs.ingest(record)
    assert (record.step, record.last_seq, record.skipped_lines) == (7, 3, 3)


def test_a_line_that_the_database_refuses_costs_itself_only(runs: Runs) -> None:
    record = runs.add("a")
    runs.append("a", ("started", {"attempt": 1, "pid": 1}), ("log", {"level": "info", "message": "x"}), STEP)
    # A trigger, because databases differ in what they refuse.
    with runs.database.write() as connection:
        connection.exec_driver_sql(
            "CREATE TRIGGER no BEFORE INSERT ON metrics WHEN NEW.step = 4 BEGIN SELECT RAISE(ABORT, 'no'); END"
        )
    runs.append("a", ("metrics", {"step": 4, "metrics": {"loss": 1.0}}), ("progress", {"step": 5, "total_steps": 9}))
    record = runs.ingest(record)
    assert (record.step, record.last_seq, record.skipped_lines) == (5, 5, 1)
