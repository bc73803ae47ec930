from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
import pytest

from merlina.executors.fork_server import UNSEEN, Forked, ForkServer, NoForkServerError, child_environment
from merlina.executors.helper_process import HelperPool
from merlina.schemas.operations import MeasureProductRate
from tests.harness import until

pytestmark = pytest.mark.slow

_PATIENCE = 60.0


@pytest.fixture(scope="module")
def fork_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkServer]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("API_KEY", f"api_key_{MARK}")
        patch.setenv("HF_TOKEN", f"hf_{MARK}")
        server = ForkServer(60, tmp_path_factory.mktemp("forks") / "log")
        yield server
        server.close()


def fork_helper(server: ForkServer, **environment: str) -> tuple[Forked, int, int]:
    """With where it is asked and where it answers."""
    requests, answers = os.pipe(), os.pipe()
    files = [requests[0], answers[1], os.open(os.devnull, os.O_WRONLY)]
    child = server.fork("helper", [], child_environment() | environment, files, patience=_PATIENCE)
    for file in files:
        os.close(file)
    return child, requests[1], answers[0]


# In all that must not be remembered, so that a gigabyte need be read for one text only.
MARK = "5d1f_is_a_secret"


def remembered(pid: int, texts: Sequence[str]) -> set[str]:
    """Those, all with the mark, that are anywhere in the memory that the process may write to."""
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


def test_a_child_has_its_own_session_environment_and_files_and_tells_its_exit_code(fork_server: ForkServer) -> None:
    child, asked, answers = fork_helper(fork_server)
    os.write(asked, json.dumps({"id": 1, "op": "no such thing", "args": {}}).encode() + b"\n")
    assert json.loads(os.read(answers, 1 << 16))["id"] == 1
    assert os.getsid(child.pid) == child.pid != os.getsid(0)
    assert psutil.Process(child.pid).ppid() == fork_server.pid
    assert child.poll() is None
    os.close(asked)
    assert child.wait() == 0


def test_a_token_is_known_to_its_own_process_alone(fork_server: ForkServer) -> None:
    token = f"of one run {os.urandom(8).hex()} {MARK}"
    child, asked, answers = fork_helper(fork_server, WANDB_API_KEY=token)
    os.write(asked, b'{"id": 1, "op": "no such thing", "args": {}}\n')
    assert os.read(answers, 1 << 16)
    other, _, _ = fork_helper(fork_server)
    assert fork_server.pid is not None
    secrets = (token, f"api_key_{MARK}", f"hf_{MARK}")
    assert remembered(child.pid, secrets) == {token}
    assert remembered(fork_server.pid, secrets) == remembered(other.pid, secrets) == set()


def test_a_signal_is_told_as_such_and_nothing_is_left_in_the_process_table(fork_server: ForkServer) -> None:
    child, _, _ = fork_helper(fork_server)
    os.killpg(child.pid, signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    assert not psutil.pid_exists(child.pid)


def test_it_forks_with_one_thread_and_no_file_of_a_child_left_open(fork_server: ForkServer) -> None:
    fork_helper(fork_server)
    assert fork_server.pid is not None
    process = psutil.Process(fork_server.pid)
    assert process.num_threads() == 1
    before = process.num_fds()
    fork_helper(fork_server)
    assert process.num_fds() == before


def test_children_outlive_it_and_the_next_fork_gets_another(fork_server: ForkServer) -> None:
    child, asked, answers = fork_helper(fork_server)
    first = fork_server.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    os.write(asked, json.dumps({"id": 7, "op": "no such thing", "args": {}}).encode() + b"\n")
    assert json.loads(os.read(answers, 1 << 16))["id"] == 7
    until(lambda: not psutil.pid_exists(first) or fork_server.pid is None, what="the fork server's death")
    second, _, _ = fork_helper(fork_server)
    assert psutil.Process(second.pid).ppid() == fork_server.pid != first
    os.close(asked)
    until(lambda: child.poll() == UNSEEN, what="the child's end")


@pytest.mark.long
def test_one_that_hangs_is_ended_and_the_next_fork_gets_another(fork_server: ForkServer) -> None:
    fork_helper(fork_server)
    first = fork_server.pid
    assert first is not None
    os.kill(first, signal.SIGSTOP)
    with pytest.raises(NoForkServerError, match="doesn't answer"):
        fork_helper(fork_server)
    assert not psutil.pid_exists(first)
    fork_helper(fork_server)


@pytest.mark.long
def test_it_is_let_go_when_idle_but_not_while_a_child_lives(tmp_path: Path) -> None:
    server = ForkServer(0.3, tmp_path / "log")
    try:
        with pytest.raises(NoForkServerError, match="ready"):
            server.fork("helper", [], {}, [])
        killed = server.pid
        assert killed is not None
        os.kill(killed, signal.SIGKILL)
        until(lambda: server.pid is None, what="its end amid its imports")
        child, asked, _ = fork_helper(server)
        pid = server.pid
        assert pid is not None
        assert child.wait(1.0) is None
        assert server.pid == pid
        os.close(asked)
        until(lambda: server.pid is None and not psutil.pid_exists(pid), what="the fork server to be let go")
        assert child.poll() == 0
    finally:
        server.close()


def test_a_helper_is_forked_where_there_is_one(fork_server: ForkServer, tmp_path: Path) -> None:
    helper = HelperPool(60, tmp_path / "log", fork_server)
    try:
        helper.call(MeasureProductRate(dtype="float32", width=8))
        assert helper.pid is not None
        assert psutil.Process(helper.pid).ppid() == fork_server.pid
    finally:
        helper.close()
