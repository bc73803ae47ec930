from __future__ import annotations

import fcntl
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from merlina.executors.fork_server import child_environment
from tests.harness import until

pytestmark = pytest.mark.slow

COMMAND = [sys.executable, "-m", "merlina.worker.fork_server"]


@dataclass
class ForkServer:
    """The process itself, spoken to as the server does."""

    process: subprocess.Popen[bytes]
    connection: socket.socket

    def ask(self, request: dict[str, Any], files: Sequence[int]) -> dict[str, Any]:
        socket.send_fds(self.connection, [json.dumps(request).encode() + b"\n"], files)
        return self.read()

    def read(self) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self.connection.recv(1 << 16))
        return answer


@pytest.fixture(scope="module")
def fork_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkServer]:
    ours, theirs = socket.socketpair()
    with theirs, (tmp_path_factory.mktemp("forks") / "log").open("wb") as log:
        process = subprocess.Popen(COMMAND, stdin=theirs, stdout=log, stderr=log, env=child_environment())
    server = ForkServer(process, ours)
    assert server.read() == {"ready": process.pid}
    yield server
    ours.close()
    process.kill()
    process.wait()


def test_a_child_that_nobody_waits_for_never_begins_and_lets_its_lock_go(
    fork_server: ForkServer, tmp_path: Path
) -> None:
    told, telling = os.pipe()
    lock, output = os.open(tmp_path / "lock", os.O_CREAT | os.O_RDWR), os.open(tmp_path / "log", os.O_CREAT | os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_EX)
    pid = fork_server.ask({"run": "worker", "arguments": [str(tmp_path)]}, [told, output, output, output, lock])["pid"]
    os.close(told)
    os.close(lock)
    again = os.open(tmp_path / "lock", os.O_RDWR)
    with pytest.raises(BlockingIOError):
        fcntl.flock(again, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.write(telling, b'{"half": ')
    os.close(telling)
    until(lambda: not psutil.pid_exists(pid), what="the child's end")
    fcntl.flock(again, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert os.pread(output, 1, 0) == b""
    assert fork_server.ask({"exit_code": pid}, []) == {"exit_code": 0}


def test_it_ends_with_its_input_and_its_children_go_on(fork_server: ForkServer) -> None:
    told, telling = os.pipe()
    asked, asking = os.pipe()
    answers, answering = os.pipe()
    with open(os.devnull, "wb") as nothing:
        files = [told, asked, answering, nothing.fileno()]
        child = psutil.Process(fork_server.ask({"run": "helper", "arguments": []}, files)["pid"])
    for file in (told, asked, answering):
        os.close(file)
    os.write(telling, json.dumps(child_environment()).encode() + b"\n")
    os.close(telling)
    os.write(asking, b'{"id": 1, "op": "no such thing", "args": {}}\n')
    assert json.loads(os.read(answers, 1 << 16))["id"] == 1
    fork_server.connection.close()
    assert fork_server.process.wait(10) == 0
    os.write(asking, b'{"id": 2, "op": "no such thing", "args": {}}\n')
    assert json.loads(os.read(answers, 1 << 16))["id"] == 2
    os.close(asking)
    child.wait(10)


@pytest.mark.long
def test_it_forks_nothing_where_a_library_has_started_a_thread() -> None:
    environment = child_environment() | {"JE_ARROW_MALLOC_CONF": "background_thread:true"}
    ours, theirs = socket.socketpair()
    with ours, theirs:
        done = subprocess.run(COMMAND, stdin=theirs, capture_output=True, env=environment, check=False)
    assert done.returncode == 1
    assert b"No process can be forked from this one: it has 2 threads" in done.stderr


@pytest.mark.long
def test_what_is_imported_where_there_is_a_gpu_leaves_it_alone() -> None:
    script = """
import importlib, sys, torch
from merlina.worker.fork_server import _WITHOUT_BITSANDBYTES
def opened(): sys.exit("the GPU was opened")
torch.cuda._lazy_init = opened
for module in _WITHOUT_BITSANDBYTES:
    importlib.import_module(module)
print("bitsandbytes" in sys.modules)
torch.cuda.is_available, torch.cuda.device_count = lambda: True, lambda: 1
import bitsandbytes
"""
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, env=child_environment(), check=False)
    assert done.stdout.splitlines() == ["False"], done.stderr
    assert "the GPU was opened" in done.stderr, "bitsandbytes leaves it alone now, and can be imported before forking"
