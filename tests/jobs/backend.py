"""The server's side of jobs without HTTP, threads or processes: a database, a fake executor and a clock to set."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from merlina.executors.fake import FakeExecutor, FakeWorker
from merlina.hardware.gpus import Gpu
from merlina.jobs.broadcast import Broadcast
from merlina.jobs.commands import JobCommands
from merlina.jobs.moves import Moves
from merlina.jobs.supervisor.supervisor import Supervisor
from merlina.run_folder.folder import RunFolder
from merlina.schemas.training.config import TrainingConfig
from merlina.storage import jobs
from merlina.storage.database import Database
from merlina.storage.jobs import JobRecord
from tests.harness import training_config

GRACE_SECONDS = 30.0


class Clock:
    """Epoch and monotonic time, which change only when a test sets them."""

    def __init__(self) -> None:
        self.seconds = 1_000_000.0

    def __call__(self) -> float:
        return self.seconds


class Backend:
    """Commands and supervisor as the server wires them; a test calls each cycle itself."""

    def __init__(self, root: Path, empty_database: Path, broadcast: Broadcast | None = None) -> None:
        self.root = root
        self.runs_dir = root / "runs"
        self.runs_dir.mkdir()
        self.dataset = root / "pairs.jsonl"
        self.dataset.write_text('{"prompt": "p", "chosen": "c", "rejected": "r"}\n')
        shutil.copy(empty_database, root / "merlina.db")
        self.database = Database(f"sqlite:///{root / 'merlina.db'}")
        self.clock = Clock()
        self.broadcast = broadcast or Broadcast()
        self.moves = Moves(self.database, self.broadcast, self.clock)
        self.executor = FakeExecutor()
        self.gpus: list[Gpu] = []
        self.freed_for: list[str] = []
        self.supervisor = self.new_supervisor()
        self.wakes = 0
        self.commands = JobCommands(
            self.database, self.moves, self.executor, self.runs_dir, root / "models", self._wake,
            compare_data=lambda *given: None, find_files=lambda _: {}, clock=self.clock,
        )  # fmt: skip

    def new_supervisor(self, max_concurrent: int = 1) -> Supervisor:
        return Supervisor(
            self.database, self.moves, self.executor, runs_dir=self.runs_dir, max_concurrent=max_concurrent,
            share_gpus=False, stop_grace_seconds=GRACE_SECONDS, trust_remote_code=False, max_row_mb=1,
            allowed_data_urls=(),
            list_gpus=lambda: self.gpus, free_memory_for=lambda record: self.freed_for.append(record.job_id),
            find_files=lambda _: {}, clock=self.clock, monotonic=self.clock,
        )  # fmt: skip

    def submit(
        self, name: str = "model", priority: Any = "normal", *, preemptible: bool = False, **changes: Any
    ) -> str:
        config = TrainingConfig.model_validate(
            {**training_config(self.root / "base", self.dataset, name), "hf_token": "hf_secret", **changes}
        )
        record = self.commands.submit(config, priority, self.dataset, preemptible=preemptible, memory_needed_mb=None)
        return record.job_id

    def start(self, *args: Any, **kwargs: Any) -> tuple[str, FakeWorker]:
        """Submit a job and start its worker."""
        job_id = self.submit(*args, **kwargs)
        self.supervisor.run_cycle()
        return job_id, self.executor.workers[job_id]

    def run_cycles(self, seconds: float) -> None:
        """Let time pass, with a cycle each second."""
        for _ in range(round(seconds)):
            self.clock.seconds += 1
            self.supervisor.run_cycle()

    def record(self, job_id: str) -> JobRecord:
        with self.database.read() as connection:
            record = jobs.get(connection, job_id)
        assert record is not None
        return record

    def folder(self, job_id: str) -> RunFolder:
        return self.commands.folder(job_id)

    def _wake(self) -> None:
        self.wakes += 1
