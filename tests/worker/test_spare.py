"""The spare process, on a socket as the server uses it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from merlina.executors.environment import child_environment
from merlina.run_folder.folder import RunFolder
from tests.harness import until

pytestmark = pytest.mark.slow

# Installed in the spare process before anything else: it stands for a machine with a GPU, and records every call that
# would open it or ask the driver about it.
RECORDER = """
import ctypes, os, sys

def record(call):
    with open(os.environ["GPU_CALLS"], "a") as file:
        print(call, file=file)

def on_event(event, arguments):
    if event == "import" and arguments[0].split(".")[0] in ("bitsandbytes", "peft"):
        record(f"import {arguments[0]}")
    if event == "ctypes.dlopen" and any(part in str(arguments[0]) for part in ("libcuda", "nvidia")):
        record(f"open {arguments[0]}")

sys.addaudithook(on_event)
import pynvml, torch

def replace(owner, name, result):
    def call(*arguments, **options):
        record(name)
        return result
    setattr(owner, name, call)

torch._C._accelerator_getAccelerator = lambda: torch.device("cuda")  # what torch was built for
torch._C._cuda_getCurrentRawStream = None
for owner, name, result in (
    (torch._C, "_cuda_init", None), (torch._C, "_cuda_getDeviceCount", 1), (torch.cuda, "_lazy_init", None),
    (torch.cuda, "is_available", True), (torch.cuda, "device_count", 1), (torch.cuda, "current_device", 0),
    (torch.cuda, "get_device_capability", (9, 0)), (torch.cuda, "get_device_properties", None),
    (torch.accelerator, "is_available", True), (torch.accelerator, "device_count", 1), (pynvml, "nvmlInit", None),
    (pynvml, "nvmlInitWithFlags", None),
):
    replace(owner, name, result)
"""


@dataclass
class Spare:
    process: subprocess.Popen[bytes]
    connection: socket.socket

    def until_ready(self) -> None:
        """Wait until the imports are complete, which the process title shows."""
        until(lambda: psutil.Process(self.process.pid).cmdline()[:1] == ["merlina spare"], 120, "the imports")

    def order(self, role: str, arguments: Sequence[str], files: Sequence[int], **environment: str) -> None:
        order = {"role": role, "arguments": arguments, "environment": child_environment() | environment}
        self.send(json.dumps(order).encode() + b"\n", files)

    def send(self, content: bytes, files: Sequence[int]) -> None:
        sent = socket.send_fds(self.connection, [content], files)
        if sent < len(content):
            self.connection.sendall(content[sent:])


@dataclass
class Pipes:
    """The pipes for requests and replies of a helper process, and its three standard files."""

    asking: int
    answers: int
    files: list[int]

    def ask(self, operation: str) -> dict[str, Any]:
        os.write(self.asking, json.dumps({"id": 1, "op": operation, "args": {}}).encode() + b"\n")
        answer: dict[str, Any] = json.loads(os.read(self.answers, 1 << 16))
        return answer


@pytest.fixture
def pipes() -> Iterator[Pipes]:
    asked, asking = os.pipe()
    answers, answering = os.pipe()
    nothing = os.open(os.devnull, os.O_WRONLY)
    yield Pipes(asking, answers, [asked, answering, nothing])
    for file in (asked, asking, answers, answering, nothing):
        os.close(file)


StartSpare = Callable[..., Spare]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[StartSpare]:
    started: list[Spare] = []

    def start_spare(environment: Mapping[str, str] | None = None) -> Spare:
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-m", "merlina.worker.spare"]
        with theirs, (tmp_path / "spare.log").open("ab") as log:
            process = subprocess.Popen(
                command, stdin=theirs, stdout=log, stderr=log, env=child_environment() | (environment or {})
            )
        started.append(Spare(process, ours))
        return started[-1]

    yield start_spare
    for spare in started:
        spare.connection.close()
        spare.process.kill()
        spare.process.wait()


def test_it_ends_at_once_with_the_server_even_during_the_imports(start: StartSpare) -> None:
    spare = start()
    time.sleep(0.5)
    spare.connection.close()
    assert spare.process.wait(5) == 0


def test_half_an_order_is_not_carried_out_and_releases_the_lock(start: StartSpare, tmp_path: Path) -> None:
    """The server died while it sent."""
    spare, run = start(), RunFolder(tmp_path)
    with run.locked() as lock, (tmp_path / "output").open("wb") as output:
        assert lock is not None
        spare.send(b'{"role": "worker", "argu', [output.fileno()] * 3 + [lock])
    assert run.is_locked()
    spare.connection.close()
    assert spare.process.wait(5) == 0
    assert not run.is_locked()
    assert not run.events_file.exists()
    assert (tmp_path / "output").read_bytes() == b""


def test_the_lock_is_held_from_the_moment_of_sending_and_the_worker_needs_no_server(
    start: StartSpare, tmp_path: Path
) -> None:
    """The server died right after it had sent, before the process could read."""
    spare, run = start(), RunFolder(tmp_path)
    until(lambda: psutil.Process(spare.process.pid).num_threads() > 1, what="the start")
    os.kill(spare.process.pid, signal.SIGSTOP)
    run.order_file.write_text("{}")
    with run.locked() as lock, (tmp_path / "output").open("wb") as output:
        assert lock is not None
        spare.order("worker", [str(tmp_path)], [output.fileno()] * 3 + [lock])
    spare.connection.close()
    assert run.is_locked()
    with run.locked() as lock:
        assert lock is None
    os.kill(spare.process.pid, signal.SIGCONT)
    assert spare.process.wait(60) == 1, "the order cannot be read"
    assert "not a run order that this version" in run.events_file.read_text()
    assert not run.is_locked()


def test_an_order_may_arrive_during_the_imports(start: StartSpare, pipes: Pipes) -> None:
    spare = start()
    spare.order("helper", [], pipes.files)
    spare.connection.close()
    assert pipes.ask("no such thing")["error"]["kind"] == "HelperError"
    assert psutil.Process(spare.process.pid).cmdline()[0] == "merlina helper"


@pytest.mark.skipif(sys.platform != "linux", reason="threads have no priority of their own")
def test_only_the_imports_have_a_low_priority(start: StartSpare) -> None:
    spare = start()
    pid = spare.process.pid

    def priorities() -> list[int]:
        threads = sorted(thread.id for thread in psutil.Process(pid).threads())
        return [os.getpriority(os.PRIO_PROCESS, thread) - os.getpriority(os.PRIO_PROCESS, 0) for thread in threads]

    until(lambda: priorities() == [0, 5], 20, "the lower priority of the second thread")


def test_the_imports_neither_open_a_gpu_nor_query_one(start: StartSpare, pipes: Pipes, tmp_path: Path) -> None:
    calls, site = tmp_path / "calls", tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(RECORDER)
    calls.touch()
    spare = start({"PYTHONPATH": str(site), "GPU_CALLS": str(calls)})
    spare.until_ready()
    assert calls.read_text() == ""
    assert (tmp_path / "spare.log").read_text() == ""
    # The recorder works: the import of peft after the assignment opens the GPU.
    spare.order("helper", [], pipes.files, GPU_CALLS=str(calls))
    assert "ValidationError" in pipes.ask("inspect_model")["error"]["message"]
    found = calls.read_text().split("\n")
    assert "import bitsandbytes" in found
    assert "is_available" in found
