"""A real server in its own process, and what tests do with it."""

from __future__ import annotations

import http.client
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

from merlina.client import Client
from merlina.run_folder.event_log import EventLog
from merlina.run_folder.folder import RunFolder
from merlina.schemas.events import Ended
from merlina.schemas.jobs import JobStatus
from merlina.storage import jobs
from merlina.storage.database import Database

ENDED = ("completed", "failed", "stopped", "cancelled")
_numbers = itertools.count(1)


def pairs_file(path: Path, rows: int = 40) -> Path:
    """A small preference set about sums."""
    with path.open("w") as file:
        for number in range(rows):
            row = {
                "prompt": f"What is {number} plus {number}?",
                "chosen": f"It is {2 * number}. The runes agree.",
                "rejected": f"I can't really say what {number} and {number} may add up to.",
            }
            file.write(json.dumps(row) + "\n")
    return path


def training_config(base_model: Path, dataset_file: Path, output_name: str, **changes: Any) -> dict[str, Any]:
    """Return the configuration of a short run on the CPU, with `changes` applied."""
    return {
        "base_model": str(base_model),
        "output_name": output_name,
        "dataset": {"source": {"source_type": "local_file", "file_path": str(dataset_file)}, "test_size": 0.1},
        "use_4bit": False,
        "optimizer_type": "adamw_torch",
        "learning_rate": 1e-3,
        "num_epochs": 1,
        "batch_size": 2,
        "gradient_accumulation_steps": 2,
        "max_length": 128,
        "max_prompt_length": 64,
        "lora_r": 8,
        **changes,
    }


def damaged_model(model: Path, folder: Path) -> Path:
    """Return a copy of a model with unreadable weights, which only a run detects ("are damaged")."""
    shutil.copytree(model, folder)
    (folder / "model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0rubbish")
    return folder


def add_running_job(root: Path, job_id: str) -> RunFolder:
    """Add a job that trains to the database in `root`; the holder of its lock acts as its worker."""
    (root / "data").mkdir(parents=True, exist_ok=True)
    database = Database(f"sqlite:///{root / 'data' / 'merlina.db'}")
    database.migrate()
    values = {
        "job_id": job_id, "state": "training", "priority": 3, "config": {}, "base_model": "m", "output_name": "o",
        "target_dir": "o", "attempt_seen": 1, "created_at": time.time(), "updated_at": time.time(),
    }  # fmt: skip
    with database.write() as connection:
        jobs.add(connection, values)
    database.close()
    return RunFolder(root / "data" / "runs" / job_id)


@dataclass
class ActingWorker:
    """The test as the worker of a job: it holds the lock and writes the events."""

    job_id: str
    log: EventLog
    has_ended: bool = False

    def end(self, event: Ended) -> None:
        self.log.append(event)
        self.has_ended = True


@contextmanager
def acting_worker(server: Server) -> Iterator[ActingWorker]:
    """Add a job that trains to a running server, which notices it at its next command, and act as its worker.

    It occupies a slot. A stop or pause is not carried out; the job ends as stopped at the end of the block.
    """
    job_id = f"job_20250101_000000_{next(_numbers)}"
    folder = server.folder(job_id)
    with folder.locked():
        add_running_job(server.root, job_id)
        worker = ActingWorker(job_id, EventLog(folder.events_file))
        yield worker
        if not worker.has_ended:
            worker.end(Ended(state="stopped"))
        server.until_ended(job_id)
        worker.log.close()


def until(
    condition: Callable[[], Any], seconds: float = 60, what: str = "the condition", interval: float = 0.05
) -> Any:
    """Return the first true value of the condition, checked every `interval` seconds; fail the test after `seconds`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(interval)
    raise AssertionError(f"{what} did not become true within {seconds} s")


def has_ended(process: psutil.Process) -> bool:
    """Return whether a process has ended, even if its parent has not collected its exit code."""
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


@dataclass
class Server:
    """`merlina serve` on a free port, with a data folder that outlives it."""

    root: Path
    settings: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None
    port: int = 0
    _status_client: Client | None = field(default=None, repr=False)

    def start(self) -> Server:
        self.port = self.port or _free_port()
        # One thread makes losses reproducible bit for bit; workers of several tests share two cores.
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "DATA_DIR": str(self.root / "data"),
            "MODELS_DIR": str(self.root / "models"),
            "ALLOWED_PATHS": str(self.root),
            "HF_HUB_OFFLINE": "1",
            "MERLINA_CRASH_FILE": str(self.crash_file),
            # A spare process costs seconds of a core, and most tests would not use it.
            "SPARE_PROCESSES": "false",
            **self.settings,
        }
        with (self.root / "server.log").open("ab") as log:
            # -P, as in the installed script: modules of the current folder are not imported.
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "merlina.cli.main", "serve", "--port", str(self.port)],
                env=environment,
                cwd=self.root,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        until(self._responds, 60, "the server's first response")
        return self

    @property
    def crash_file(self) -> Path:
        """File with the fault point at which the next process that reaches it crashes (see merlina.faults)."""
        return self.root / "crash"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self) -> Client:
        return Client(self.url)

    def http(self, **options: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=60, **options)

    def kill(self) -> None:
        """Kill the server with SIGKILL, like a crash."""
        assert self.process
        self._close_client()
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        assert self.process
        self._close_client()
        self.process.terminate()
        return self.process.wait(20)

    def folder(self, job_id: str) -> RunFolder:
        return RunFolder(self.root / "data" / "runs" / job_id)

    def kill_worker(self, job_id: str, number: int = signal.SIGKILL) -> None:
        worker = self.folder(job_id).worker()
        assert worker is not None
        os.kill(worker.pid, number)

    def end_workers(self) -> None:
        """Kill all workers that are still running."""
        for path in (self.root / "data" / "runs").glob("*"):
            folder = RunFolder(path)
            worker = folder.worker()
            if worker is not None and folder.is_locked():
                os.kill(worker.pid, signal.SIGKILL)

    def train(self, config: dict[str, Any], priority: str = "normal") -> str:
        with self.http() as http:
            response = http.post("/train", json=config, params={"priority": priority})
        assert response.status_code == 200, response.text
        return str(response.json()["job_id"])

    def status(self, job_id: str) -> JobStatus:
        # One client for all requests: creating one takes longer than the interval between two requests.
        if self._status_client is None:
            self._status_client = self.client()
        return self._status_client.status(job_id)

    def until_step(self, job_id: str, step: int, seconds: float = 60) -> JobStatus:
        def reached() -> JobStatus | None:
            status = self.status(job_id)
            assert status.status not in ENDED, status
            return status if (status.current_step or 0) >= step else None

        return until(reached, seconds, f"step {step} of {job_id}")

    def until_ended(self, job_id: str, seconds: float = 90) -> JobStatus:
        def ended() -> JobStatus | None:
            status = self.status(job_id)
            return status if status.status in ENDED else None

        # The server spends some milliseconds on each response, and a run takes seconds.
        return until(ended, seconds, f"the end of {job_id}", interval=0.1)

    def history(self) -> list[str]:
        """Return the ids of all jobs, the newest first."""
        with self.client() as client:
            return [job.job_id for job in client.history().jobs]

    def losses(self, job_id: str) -> dict[int, float | None]:
        """Return the loss by step; fail the test if a step is recorded twice."""
        with self.client() as client:
            rows = client.metrics(job_id).metrics
        steps = [row.step for row in rows]
        assert steps == sorted(set(steps)), steps
        return {row.step: row.loss for row in rows if row.loss is not None}

    def log_lines(self, job_id: str) -> list[str]:
        """Return the messages in the run's log."""
        with self.client() as client:
            return [line.message for line in client.logs(job_id).logs]

    def _responds(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, (self.root / "server.log").read_text()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=1)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def _close_client(self) -> None:
        if self._status_client is not None:
            self._status_client.close()
            self._status_client = None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
