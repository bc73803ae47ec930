from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from merlina.errors import BusyError, ConflictError, HelperError, InsufficientMemoryError, InvalidRequestError
from merlina.executors.chat_process import ChatProcess, Claim
from tests.chat.trained import Trained, answer, load
from tests.harness import has_ended, until

pytestmark = pytest.mark.slow

LONG = 400


@pytest.fixture(scope="module")
def chat_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChatProcess]:
    """Loading a model takes seconds, so each test continues with the process that the previous one left."""
    chat_process = ChatProcess(60, tmp_path_factory.mktemp("chat") / "chat.log")
    yield chat_process
    chat_process.close()


def ask(chat_process: ChatProcess, trained: Trained, tokens: int = 3, **changes: Any) -> Any:
    sampling = {"max_new_tokens": tokens, "temperature": 1.5, "top_p": 1.0, "seed": 1, **changes}
    return answer(chat_process, trained.spec(), trained.question("tuned", **sampling))


def test_a_cancelled_answer_ends_at_once_and_the_next_one_is_complete(
    chat_process: ChatProcess, trained: Trained
) -> None:
    whole = list(ask(chat_process, trained, LONG, seed=7))
    began = time.monotonic()
    again = list(ask(chat_process, trained, LONG, seed=7))
    needed, pid = time.monotonic() - began, chat_process.pid
    assert again[:-1] == whole[:-1]
    assert again[-1].tokens > LONG / 2
    cancelled = ask(chat_process, trained, LONG, seed=7)
    assert [next(cancelled).type for _ in range(3)] == ["begin", "text", "text"]
    assert chat_process.status.state == "answering"
    began = time.monotonic()
    cancelled.close()
    assert time.monotonic() - began < needed / 4
    assert chat_process.status.state == "ready"
    assert len(list(ask(chat_process, trained))) == 6
    assert chat_process.pid == pid


def test_a_refused_request_leaves_the_process_running(chat_process: ChatProcess, trained: Trained) -> None:
    long = trained.question("base", "sky " * 600)
    with pytest.raises(InvalidRequestError, match="512 positions"):
        next(answer(chat_process, trained.spec(), long))
    pid = chat_process.pid
    assert next(ask(chat_process, trained)).prompt_tokens > 5
    assert chat_process.pid == pid


def test_a_disconnected_client_stops_waiting(chat_process: ChatProcess, trained: Trained) -> None:
    answering = ask(chat_process, trained, LONG)
    next(answering)
    gone = threading.Event()
    gone.set()
    with pytest.raises(BusyError):
        load(chat_process, trained.spec(), closed=gone)
    answering.close()


def test_a_loaded_model_stays_if_another_is_refused(chat_process: ChatProcess, trained: Trained) -> None:
    load(chat_process, trained.spec())
    before = chat_process.status

    def refuse(_: Claim) -> None:
        raise ConflictError("no memory")

    other = replace(trained.spec(), job_id="other")
    with pytest.raises(ConflictError, match="no memory"):
        load(chat_process, other, admit=refuse)
    assert (chat_process.status.state, chat_process.status.spec) == ("ready", before.spec)


def test_a_release_is_immediate_and_ends_waiting_calls(chat_process: ChatProcess, trained: Trained) -> None:
    answering = ask(chat_process, trained, LONG)
    next(answering)
    assert chat_process.pid is not None
    process = psutil.Process(chat_process.pid)
    refused: list[str] = []

    def wait_for_turn() -> None:
        try:
            next(ask(chat_process, trained))
        except ConflictError as error:
            refused.append(error.message)

    waiting = threading.Thread(target=wait_for_turn)
    waiting.start()
    until(lambda: len(psutil.Process().threads()) > 1 and waiting.is_alive(), 5, "a waiting call")
    assert chat_process.unload("job_x needs its memory")
    assert has_ended(process)
    assert chat_process.status.state == "empty"
    # The answer was not read meanwhile.
    with pytest.raises(ConflictError, match="job_x needs its memory"):
        list(answering)
    waiting.join(20)
    assert refused == ["The model was unloaded: job_x needs its memory"]
    assert chat_process.pid is None
    assert not chat_process.unload("once more")
    assert next(ask(chat_process, trained)).type == "begin"


def test_a_death_is_an_error_and_the_next_request_loads_the_model_again(
    chat_process: ChatProcess, trained: Trained
) -> None:
    answering = ask(chat_process, trained, LONG)
    next(answering)
    pid = chat_process.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(HelperError, match="died"):
        list(answering)
    assert chat_process.status.state == "empty"
    assert next(ask(chat_process, trained)).type == "begin"
    assert chat_process.pid != pid


def test_the_model_of_a_later_attempt_replaces_the_loaded_one(chat_process: ChatProcess, trained: Trained) -> None:
    load(chat_process, trained.spec())
    first = chat_process.pid
    load(chat_process, trained.spec())
    assert chat_process.pid == first
    load(chat_process, replace(trained.spec(), attempt=2))
    assert chat_process.pid != first


def test_a_forced_job_is_admitted_until_its_model_is_unloaded(chat_process: ChatProcess, trained: Trained) -> None:
    def refuse(_: Claim) -> None:
        raise InsufficientMemoryError("no memory")

    def load_refused(attempt: int, job_id: str = trained.job_id, *, force: bool = False) -> int | None:
        load(chat_process, replace(trained.spec(), attempt=attempt, job_id=job_id), admit=refuse, force=force)
        return chat_process.pid

    # The attempt that the previous test loaded.
    load(chat_process, replace(trained.spec(), attempt=2))
    first = chat_process.pid
    # The model is loaded already, and forced from now on.
    assert load_refused(2, force=True) == first
    assert load_refused(3) not in (first, None)
    with pytest.raises(InsufficientMemoryError):
        load_refused(2, "other")
    assert chat_process.status.forced
    chat_process.unload("once")
    with pytest.raises(InsufficientMemoryError):
        load_refused(4)


def test_a_claim_is_admitted_again_once_published_and_withdrawn_if_refused(
    chat_process: ChatProcess, trained: Trained
) -> None:
    chat_process.unload("so that the model must be loaded")
    seen: list[tuple[str, Claim | None]] = []

    def refuse(claim: Claim) -> None:
        seen.append((chat_process.status.state, chat_process.status.claim))
        if seen[-1][0] == "loading":
            raise ConflictError("no memory")

    with pytest.raises(ConflictError, match="no memory"):
        load(chat_process, trained.spec(), Claim(1, 700), refuse)
    assert seen == [("empty", None), ("loading", Claim(1, 700))]
    assert chat_process.status.claim is None
    assert chat_process.pid is None


def test_it_ends_when_idle_and_refuses_calls_after_close(trained: Trained, tmp_path: Path) -> None:
    chat_process = ChatProcess(0.3, tmp_path / "chat.log")
    list(ask(chat_process, trained))
    assert chat_process.status.idle_until is not None
    until(lambda: chat_process.pid is None, 10, "the end of the idle process")
    assert chat_process.status.state == "empty"
    chat_process.close()
    with pytest.raises(ConflictError, match="shutting down"):
        list(ask(chat_process, trained))
