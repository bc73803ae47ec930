from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from merlina.chat.memory import ChatMemory
from merlina.domain.units import MIB
from merlina.errors import ConflictError
from merlina.executors.chat_process import ChatProcess, Claim
from merlina.hardware.gpus import Gpu
from merlina.hardware.host import available_memory
from merlina.storage import jobs
from merlina.storage.database import Database
from merlina.storage.jobs import JobRecord
from tests.chat.trained import Trained, load

SMALL, LARGE = Gpu(0, "a", 24_000, 3_000, 21_000), Gpu(1, "b", 48_000, 40_000, 8_000)


@dataclass
class Machine:
    """A database, a chat process and two GPUs."""

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


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    database = Database(f"sqlite:///{tmp_path / 'merlina.db'}")
    database.migrate()
    chat_process = ChatProcess(60, tmp_path / "chat.log")
    yield Machine(database, chat_process, ChatMemory(database, chat_process, tmp_path / "runs", lambda: [SMALL, LARGE]))
    chat_process.close()
    database.close()


def test_a_gpu_without_jobs_is_preferred_to_one_with_more_memory(machine: Machine) -> None:
    assert machine.chat_memory.choose_gpu() == 1
    machine.add("runs", "training", gpus=[1])
    assert machine.chat_memory.choose_gpu() == 0
    machine.chat_memory.admit(Claim(0, 2_000))
    with pytest.raises(ConflictError, match="GPU 1 is used by runs; wait until it is free, or send force: true"):
        machine.chat_memory.admit(Claim(1, 2_000))
    with pytest.raises(ConflictError, match="about 3,500 MiB of GPU 0, but only 3,000 MiB are free"):
        machine.chat_memory.admit(Claim(0, 3_500))


def test_a_gpu_that_a_queued_job_needs_is_refused(machine: Machine) -> None:
    machine.add("waits", "queued", [1])
    assert machine.chat_memory.choose_gpu() == 0
    with pytest.raises(ConflictError, match="GPU 1 is reserved for the queued job waits"):
        machine.chat_memory.admit(Claim(1, 10))
    machine.add("takes any", "queued")
    with pytest.raises(ConflictError, match="GPU 0 is reserved for the queued job takes any"):
        machine.chat_memory.admit(Claim(0, 10))


def test_the_model_is_unloaded_only_if_a_run_needs_its_memory(machine: Machine, trained: Trained) -> None:
    starts = machine.add("starts", "initializing", gpus=[0], memory_needed_mb=3_001)
    machine.chat_memory.unload_for(starts)
    # The process itself runs on the CPU: only its claim matters.
    load(machine.chat_process, trained.spec(), Claim(1, 500))
    for needs, gpus in ((10**6, [0]), (10**6, None), (40_000, [1])):
        machine.chat_memory.unload_for(machine.add(f"{needs}{gpus}", "initializing", gpus=gpus, memory_needed_mb=needs))
        assert machine.chat_process.status.state == "ready"
    machine.chat_memory.unload_for(machine.add("unknown", "initializing", gpus=[1], memory_needed_mb=None))
    assert machine.chat_process.status.state == "empty"


def test_the_memory_of_the_run_that_starts_is_counted_once(machine: Machine, trained: Trained) -> None:
    load(machine.chat_process, trained.spec(), Claim(None, 500))
    needed_mb = int(0.6 * available_memory() / MIB)
    starts = machine.add("starts", "initializing", gpus=None, memory_needed_mb=needed_mb)
    with machine.database.write() as connection:
        jobs.change(connection, starts, {"attempt": starts.attempt + 1})
    machine.chat_memory.unload_for(starts)
    assert machine.chat_process.status.state == "ready"
    machine.add("runs", "training", gpus=None, memory_needed_mb=needed_mb)
    machine.chat_memory.unload_for(starts)
    assert machine.chat_process.status.state == "empty"


def test_a_model_that_is_still_loading_is_unloaded_for_a_run(machine: Machine, trained: Trained) -> None:
    starts = machine.add("starts", "initializing", gpus=[1], memory_needed_mb=39_800)

    def start_a_run(_: Claim) -> None:
        machine.chat_memory.unload_for(starts)  # at the first admission there is no claim to see yet

    with pytest.raises(ConflictError, match="The model was unloaded: starts needs its memory"):
        load(machine.chat_process, trained.spec(), Claim(1, 500), start_a_run)
    assert machine.chat_process.pid is None
