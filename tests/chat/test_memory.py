from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from merlina.chat.memory import ChatMemory
from merlina.errors import ConflictError
from merlina.executors.chat_process import Admission, ChatProcess, Claim
from merlina.hardware.gpus import Gpu
from merlina.storage import jobs
from merlina.storage.database import Database
from merlina.storage.jobs import JobRecord
from tests.chat.trained import Trained

SMALL, LARGE = Gpu(0, "a", 24_000, 3_000, 21_000), Gpu(1, "b", 48_000, 40_000, 8_000)


@dataclass
class House:
    """A database, a chat_process and two GPUs."""

    database: Database
    chat_process: ChatProcess
    chat_memory: ChatMemory

    def add(self, job_id: str, state: str, gpu_ids: list[int] | None = None, **values: object) -> JobRecord:
        row = {
            "job_id": job_id, "state": state, "priority": 3, "config": {"gpu_ids": gpu_ids}, "base_model": "m",
            "output_name": "o", "target_dir": "o", "created_at": 1.0, "updated_at": 1.0, **values,
        }  # fmt: skip
        with self.database.write() as connection:
            return jobs.add(connection, row)

    def load(self, trained: Trained, claim: Claim) -> None:
        # The process itself is on the CPU: only what it claims is looked at.
        admission = Admission(lambda: claim, lambda _: None)
        self.chat_process.load(trained.order(), admission, threading.Event())


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    database = Database(f"sqlite:///{tmp_path / 'merlina.db'}")
    database.migrate()
    chat_process = ChatProcess(60, tmp_path / "chat.log")
    yield House(database, chat_process, ChatMemory(database, chat_process, tmp_path / "runs", lambda: [SMALL, LARGE]))
    chat_process.close()
    database.close()


def test_a_gpu_that_nobody_wants_is_taken_though_another_has_more_memory(house: House) -> None:
    assert house.chat_memory.choose_gpu() == 1
    house.add("runs", "training", gpus=[1])
    assert house.chat_memory.choose_gpu() == 0
    house.chat_memory.admit(Claim(0, 2_000))
    with pytest.raises(ConflictError, match="GPU 1 is used by runs; wait for it, or send force: true"):
        house.chat_memory.admit(Claim(1, 2_000))
    with pytest.raises(ConflictError, match="about 3,500 MiB of GPU 0, and 3,000 MiB are free"):
        house.chat_memory.admit(Claim(0, 3_500))


def test_a_gpu_that_a_job_waits_for_is_not_taken(house: House) -> None:
    house.add("waits", "queued", [1])
    assert house.chat_memory.choose_gpu() == 0
    with pytest.raises(ConflictError, match="GPU 1 is waited for by waits"):
        house.chat_memory.admit(Claim(1, 10))
    house.add("takes any", "queued")
    with pytest.raises(ConflictError, match="GPU 0 is waited for by takes any"):
        house.chat_memory.admit(Claim(0, 10))


def test_a_run_gets_what_it_needs_and_no_more_is_let_go(house: House, trained: Trained) -> None:
    starts = house.add("starts", "initializing", gpus=[0], memory_needed_mb=3_001)
    house.chat_memory.make_way(starts)
    house.load(trained, Claim(1, 500))
    for needs, gpus in ((10**6, [0]), (10**6, None), (40_000, [1])):
        house.chat_memory.make_way(house.add(f"{needs}{gpus}", "initializing", gpus=gpus, memory_needed_mb=needs))
        assert house.chat_process.status.state == "ready"
    house.chat_memory.make_way(house.add("unknown", "initializing", gpus=[1], memory_needed_mb=None))
    assert house.chat_process.status.state == "empty"


def test_a_model_that_is_still_being_loaded_makes_way_too(house: House, trained: Trained) -> None:
    starts = house.add("starts", "initializing", gpus=[1], memory_needed_mb=39_800)

    def while_it_is_admitted(_: Claim) -> None:
        house.chat_memory.make_way(starts)  # which sees nothing yet the first time

    with pytest.raises(ConflictError, match="let go: starts needs its memory"):
        house.chat_process.load(
            trained.order(), Admission(lambda: Claim(1, 500), while_it_is_admitted), threading.Event()
        )
    assert house.chat_process.pid is None
