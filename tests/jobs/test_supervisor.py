"""What the supervisor does about workers that cannot be told or end between two looks: a database, a fake executor."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from merlina.jobs.broadcast import Broadcast
from merlina.jobs.commands import JobCommands
from merlina.jobs.moves import Moves
from merlina.jobs.supervisor import Supervisor
from merlina.processes import ProcessId
from merlina.runs import EventLog, RunFolder, RunOrder
from merlina.schemas.events import Ended, Event
from merlina.storage import jobs
from merlina.storage.database import Database
from merlina.storage.jobs import JobRecord
from tests.harness import until

JOB = "job_1"


@dataclass
class FakeExecutor:
    """Workers that live or not as a test says; `unable` is raised where one would be told something."""

    alive: bool = True
    unable: OSError | None = None
    before_death: Callable[[RunFolder], None] = lambda folder: None
    requests: list[str] = field(default_factory=list)
    killed: int = 0

    def launch(self, folder: RunFolder, order: RunOrder, gpus: Sequence[int] | None) -> None:
        raise AssertionError

    def is_alive(self, folder: RunFolder, worker: ProcessId | None = None) -> bool:
        if not self.alive:
            self.before_death(folder)
        return self.alive

    def request_stop(self, folder: RunFolder) -> None:
        self._request("stop")

    def request_pause(self, folder: RunFolder, reason: str) -> None:
        self._request("pause")

    def is_detached(self, folder: RunFolder) -> bool:
        return False

    def kill(self, folder: RunFolder, worker: ProcessId | None = None) -> None:
        self.killed += 1

    def cause_of_death(self, folder: RunFolder) -> str:
        return "died"

    def _request(self, what: str) -> None:
        if self.unable is not None:
            raise self.unable
        self.requests.append(what)


class House:
    """One running job, and the supervisor whose passes a test makes."""

    def __init__(self, root: Path, broadcast: Broadcast) -> None:
        self.database = Database(f"sqlite:///{root / 'merlina.db'}")
        self.database.migrate()
        self.moves = Moves(self.database, broadcast)
        self.executor = FakeExecutor()
        self.folder = RunFolder(root / "runs" / JOB)
        self.folder.path.mkdir(parents=True)
        self.supervisor = Supervisor(
            self.database, self.moves, self.executor, runs_dir=root / "runs", max_concurrent=1, share_gpus=False,
            stop_grace_seconds=0, trust_remote_code=False, max_row_mb=1, list_gpus=list,
            free_memory_for=lambda record: None,
        )  # fmt: skip

    def add_running(self, state: str) -> JobRecord:
        values: dict[str, Any] = {
            "job_id": JOB, "state": state, "priority": 3, "config": {}, "base_model": "m", "output_name": "o",
            "target_dir": str(self.folder.path.parent / "o"), "attempt_seen": 1, "created_at": 1.0, "updated_at": 1.0,
        }  # fmt: skip
        with self.database.write() as connection:
            return jobs.add(connection, values)

    @property
    def record(self) -> JobRecord:
        with self.database.read() as connection:
            record = jobs.get(connection, JOB)
        assert record is not None
        return record

    def pass_until(self, condition: Callable[[], Any], what: str) -> None:
        def holds() -> Any:
            self.supervisor.run_pass()
            return condition()

        until(holds, 10, what)


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    house = House(tmp_path, Broadcast())
    yield house
    house.database.close()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES])
def test_a_worker_that_could_not_be_told_to_pause_is_not_killed_for_it(house: House, number: int) -> None:
    house.moves.change(house.add_running("training"), {"pause_requested_at": 1.0})
    house.executor.unable = OSError(number, os.strerror(number))
    for _ in range(5):
        house.supervisor.run_pass()
    assert house.executor.killed == 0
    house.executor.unable = None
    house.pass_until(lambda: house.executor.killed, "the end of the grace that began when it was told")
    assert "pause" in house.executor.requests


def test_the_death_of_a_worker_that_cannot_be_told_is_noticed(house: House) -> None:
    house.moves.change(house.add_running("training"), {"stop_requested_at": 1.0})
    house.executor.unable = PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    house.executor.alive = False
    house.pass_until(lambda: house.record.state == "stopped", "the end of the dead worker's job")


def test_a_job_found_completed_at_its_workers_death_is_cleaned_up_after_at_once(house: House) -> None:
    def complete(folder: RunFolder) -> None:
        if not folder.events_file.exists():
            log = EventLog(folder.events_file)
            log.append(Ended(state="completed"))
            log.close()

    house.add_running("saving")
    house.folder.write_secrets({"hf_token": "hf_x"})
    house.folder.checkpoints_dir.mkdir()
    house.executor.alive, house.executor.before_death = False, complete
    house.pass_until(lambda: house.record.state == "completed", "its end")
    house.supervisor.run_pass()
    assert not house.folder.secrets_file.exists()
    assert not house.folder.checkpoints_dir.exists()


class BusyBroadcast(Broadcast):
    """Lets the run end and start again between the moment a stop is in the database and the moment it is passed on."""

    moves: Moves

    def publish(self, record: JobRecord, events: Sequence[Event] = ()) -> None:
        super().publish(record, events)
        if record.state == "training" and record.stop_requested_at is not None:
            ended = self.moves.change(record, {"state": "stopped"})
            assert ended is not None
            queued = self.moves.change(ended, {"state": "queued", "attempt": 2, "stop_requested_at": None})
            assert queued is not None
            assert self.moves.change(queued, {"state": "initializing"}) is not None


def test_a_late_stop_does_not_reach_the_next_attempt(tmp_path: Path) -> None:
    broadcast = BusyBroadcast()
    house = House(tmp_path, broadcast)
    broadcast.moves = house.moves
    house.add_running("training")
    commands = JobCommands(
        house.database, house.moves, house.executor, tmp_path / "runs", tmp_path / "models",
        wake=lambda: None, compare_data=lambda *given: None,
    )  # fmt: skip
    commands.stop(JOB)
    assert (house.record.state, house.record.attempt) == ("initializing", 2)
    assert house.executor.requests == []
    house.database.close()
