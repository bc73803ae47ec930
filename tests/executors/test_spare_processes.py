from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from merlina.executors import spare_processes
from merlina.executors.environment import child_environment
from merlina.executors.helper_process import HelperPool
from merlina.executors.spare_processes import SpareProcesses
from merlina.schemas.operations import MeasureMatrixSpeed
from tests.harness import until

pytestmark = pytest.mark.slow

# A part of all secrets, so that the search through a gigabyte of memory looks for one text only.
MARK = "5d1f_is_a_secret"


class Started:
    """A helper process, with its pipes for requests and replies."""

    def __init__(self, spares: SpareProcesses, **environment: str) -> None:
        (asked, self._asking), (self._answers, answering) = os.pipe(), os.pipe()
        with open(os.devnull, "wb") as nothing:
            files = [asked, answering, nothing.fileno()]
            self.process = spares.start("helper", [], child_environment() | environment, files)
        os.close(asked)
        os.close(answering)

    def until_it_answers(self) -> None:
        os.write(self._asking, b'{"id": 7, "op": "no such thing", "args": {}}\n')
        assert json.loads(os.read(self._answers, 1 << 16))["id"] == 7

    def end(self) -> int:
        """Close its standard input and return its exit code."""
        if self.process.returncode is None:
            os.close(self._asking)
            os.close(self._answers)
        return self.process.wait(60)


@dataclass
class Starting:
    """Spare processes, and the processes that were started from them."""

    spares: SpareProcesses
    started: list[Started] = field(default_factory=list)

    def start(self, **environment: str) -> Started:
        self.started.append(Started(self.spares, **environment))
        return self.started[-1]

    @property
    def pid(self) -> int | None:
        return self.spares.pid


@pytest.fixture
def build(tmp_path: Path) -> Iterator[Callable[[float], Starting]]:
    """Build spare processes with an idle time."""
    built: list[Starting] = []

    def build_one(idle_seconds: float) -> Starting:
        built.append(Starting(SpareProcesses(idle_seconds, tmp_path / "spare.log")))
        return built[-1]

    yield build_one
    for starting in built:
        starting.spares.close()
        for started in starting.started:
            started.end()


@pytest.fixture
def spares(build: Callable[[float], Starting]) -> Starting:
    return build(60)


def secrets_in_memory(pid: int, texts: Sequence[str]) -> set[str]:
    """Return which of `texts`, all with the mark, are in the writable memory of the process."""
    found: set[str] = set()
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for line in maps:
            place, rights, *_ = line.split()
            start, end = (int(address, 16) for address in place.split("-"))
            if rights.startswith("rw"):
                memory.seek(start)
                held = memory.read(end - start)
                if MARK.encode() not in held:
                    continue
                found.update(text for text in texts if text.encode() in held)
    return found


def test_the_spare_process_becomes_the_next_one_and_another_takes_its_place(spares: Starting) -> None:
    assert spares.pid is None
    first = spares.start()
    spare = spares.pid
    assert spare not in (None, first.process.pid)
    second = spares.start()
    assert second.process.pid == spare
    assert spares.pid not in (None, spare)
    for started in (first, second):
        started.until_it_answers()
        assert os.getsid(started.process.pid) == started.process.pid != os.getsid(0)
    assert first.end() == second.end() == 0


def test_a_signal_is_an_exit_code(spares: Starting) -> None:
    spares.start()
    started = spares.start()
    os.killpg(started.process.pid, signal.SIGKILL)
    assert started.process.wait(10) == -signal.SIGKILL


def test_only_its_own_process_has_a_token(spares: Starting, monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = (f"of one run {os.urandom(8).hex()} {MARK}", f"api_key_{MARK}", f"hf_{MARK}")
    monkeypatch.setenv("API_KEY", secrets[1])
    monkeypatch.setenv("HF_TOKEN", secrets[2])
    spares.start()
    started = spares.start(WANDB_API_KEY=secrets[0])
    started.until_it_answers()
    assert spares.pid is not None
    assert secrets_in_memory(started.process.pid, secrets) == {secrets[0]}
    assert secrets_in_memory(spares.pid, secrets) == set()


def test_a_process_starts_without_a_spare_process_too(spares: Starting) -> None:
    spares.start()
    spare = spares.pid
    assert spare is not None
    os.kill(spare, signal.SIGKILL)
    until(lambda: spares.pid is None, what="the spare process's end")
    started = spares.start()
    assert started.process.pid != spare
    started.until_it_answers()
    assert not psutil.pid_exists(spare)
    assert spares.pid is not None


def test_a_started_process_outlives_the_spare_process(spares: Starting) -> None:
    spares.start()
    started, spare = spares.start(), spares.pid
    assert spare is not None
    spares.spares.close()
    assert not psutil.pid_exists(spare)
    started.until_it_answers()
    assert spares.start().end() == 0
    assert spares.pid is None, "closed for good"


def test_no_spare_process_is_kept_when_idle_unless_a_process_is_alive(build: Callable[[float], Starting]) -> None:
    spares = build(0.3)
    started = spares.start()
    spare = spares.pid
    started.until_it_answers()
    assert spares.pid == spare
    assert started.end() == 0
    until(lambda: spares.pid is None, 5, "the end of the idle spare process")


def test_no_spare_process_is_started_or_kept_when_memory_is_short(
    build: Callable[[float], Starting], monkeypatch: pytest.MonkeyPatch
) -> None:
    available = 3 * 1024**3 - 1
    monkeypatch.setattr(spare_processes, "available_memory", lambda: available)
    monkeypatch.setattr(spare_processes, "_CHECK_SECONDS", 0.1)
    spares = build(60)
    spares.start()
    assert spares.pid is None
    available += 1
    spares.start()
    assert spares.pid is not None
    available = 2 * 1024**3 - 1
    until(lambda: spares.pid is None, 5, "the end of the spare process")


def test_a_helper_pool_uses_the_spare_process(spares: Starting, tmp_path: Path) -> None:
    spares.start()
    spare, helper = spares.pid, HelperPool(60, tmp_path / "log", spares.spares)
    try:
        helper.call(MeasureMatrixSpeed(dtype="float32", width=8))
        assert helper.pid == spare
    finally:
        helper.close()
