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
from merlina.executors.chat_process import Admission, ChatProcess, Claim
from merlina.executors.fork_server import ForkServer
from tests.chat.trained import ADMITTED, QUESTION, Trained
from tests.harness import has_ended, until

LONG = 400


@pytest.fixture
def chat_process(fork_server: ForkServer, tmp_path: Path) -> Iterator[ChatProcess]:
    chat_process = ChatProcess(60, tmp_path / "chat.log", fork_server)
    yield chat_process
    chat_process.close()


def ask(chat_process: ChatProcess, trained: Trained, tokens: int = 3, **changes: Any) -> Any:
    sampling = {"max_new_tokens": tokens, "temperature": 1.5, "top_p": 1.0, "seed": 1, **changes}
    question = {"side": "tuned", "messages": [{"role": "user", "content": QUESTION}], "sampling": sampling}
    return chat_process.answer(trained.order(), ADMITTED, question, threading.Event())


def test_an_answer_that_is_given_up_ends_at_once_and_the_next_is_whole(
    chat_process: ChatProcess, trained: Trained
) -> None:
    whole = list(ask(chat_process, trained, LONG, seed=7))
    began = time.monotonic()
    again = list(ask(chat_process, trained, LONG, seed=7))
    needed, pid = time.monotonic() - began, chat_process.pid
    assert [event.get("text") for event in again] == [event.get("text") for event in whole]
    assert again[-1]["tokens"] > LONG / 2
    given_up = ask(chat_process, trained, LONG, seed=7)
    assert [next(given_up)["type"] for _ in range(3)] == ["begin", "text", "text"]
    assert chat_process.status.state == "answering"
    began = time.monotonic()
    given_up.close()
    assert time.monotonic() - began < needed / 4
    assert chat_process.status.state == "ready"
    assert len(list(ask(chat_process, trained))) == 6
    assert chat_process.pid == pid


def test_what_cannot_be_answered_is_refused_and_it_lives_on(chat_process: ChatProcess, trained: Trained) -> None:
    long = {"side": "base", "messages": [{"role": "user", "content": "sky " * 600}], "sampling": {}}
    with pytest.raises(InvalidRequestError, match="512 positions"):
        next(chat_process.answer(trained.order(), ADMITTED, long, threading.Event()))
    pid = chat_process.pid
    assert next(ask(chat_process, trained))["prompt_tokens"] > 5
    assert chat_process.pid == pid


def test_a_release_waits_for_no_one_and_those_who_wait_are_told(chat_process: ChatProcess, trained: Trained) -> None:
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
    until(lambda: len(psutil.Process().threads()) > 1 and waiting.is_alive(), 5, "someone who waits")
    assert chat_process.release("job_x needs its memory")
    assert has_ended(process)
    assert chat_process.status.state == "empty"
    # Nobody has read on meanwhile.
    with pytest.raises(ConflictError, match="job_x needs its memory"):
        list(answering)
    waiting.join(20)
    assert refused == ["The model was let go: job_x needs its memory"]
    assert chat_process.pid is None
    assert not chat_process.release("once more")
    assert next(ask(chat_process, trained))["type"] == "begin"


def test_a_death_is_told_and_the_next_question_loads_it_again(chat_process: ChatProcess, trained: Trained) -> None:
    answering = ask(chat_process, trained, LONG)
    next(answering)
    pid = chat_process.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(HelperError, match="died"):
        list(answering)
    assert chat_process.status.state == "empty"
    assert next(ask(chat_process, trained))["type"] == "begin"
    assert chat_process.pid != pid


def test_a_claim_is_admitted_once_more_when_it_is_seen_and_a_refused_one_is_gone(
    chat_process: ChatProcess, trained: Trained
) -> None:
    seen: list[tuple[str, Claim | None]] = []

    def refuse(claim: Claim) -> None:
        seen.append((chat_process.status.state, chat_process.status.claim))
        if seen[-1][0] == "loading":
            raise ConflictError("no room")

    with pytest.raises(ConflictError, match="no room"):
        chat_process.load(trained.order(), Admission(lambda: Claim(1, 700), refuse), threading.Event())
    assert seen == [("empty", None), ("loading", Claim(1, 700))]
    assert chat_process.status.claim is None
    assert chat_process.pid is None


def test_what_is_loaded_stays_where_another_may_not_be_loaded(chat_process: ChatProcess, trained: Trained) -> None:
    chat_process.load(trained.order(), ADMITTED, threading.Event())
    before = chat_process.status

    def refuse(_: Claim) -> None:
        raise ConflictError("no room")

    other = replace(trained.order(), job_id="other")
    with pytest.raises(ConflictError, match="no room"):
        chat_process.load(other, Admission(lambda: Claim(None, 1), refuse), threading.Event())
    assert (chat_process.status.state, chat_process.status.order) == ("ready", before.order)


def test_what_was_forced_once_is_not_refused_until_it_is_let_go(chat_process: ChatProcess, trained: Trained) -> None:
    def refuse(_: Claim) -> None:
        raise InsufficientMemoryError("no room")

    def load(attempt: int, admission: Admission, **changes: Any) -> int | None:
        chat_process.load(replace(trained.order(), attempt=attempt, **changes), admission, threading.Event())
        return chat_process.pid

    refused = Admission(ADMITTED.plan, refuse)
    first = load(1, ADMITTED)
    # It is there already, and forced from now on.
    assert load(1, replace(refused, forced=True)) == first
    assert load(2, refused) != first
    assert load(3, refused) is not None
    with pytest.raises(InsufficientMemoryError):
        load(1, refused, job_id="other")
    assert chat_process.status.forced
    chat_process.release("once")
    with pytest.raises(InsufficientMemoryError):
        load(3, refused)


def test_what_a_later_attempt_saved_is_loaded_anew(chat_process: ChatProcess, trained: Trained) -> None:
    chat_process.load(trained.order(), ADMITTED, threading.Event())
    first = chat_process.pid
    chat_process.load(trained.order(), ADMITTED, threading.Event())
    assert chat_process.pid == first
    chat_process.load(replace(trained.order(), attempt=2), ADMITTED, threading.Event())
    assert chat_process.pid != first


def test_who_has_gone_waits_no_longer(chat_process: ChatProcess, trained: Trained) -> None:
    answering = ask(chat_process, trained, LONG)
    next(answering)
    gone = threading.Event()
    gone.set()
    with pytest.raises(BusyError):
        chat_process.load(trained.order(), ADMITTED, gone)
    answering.close()


def test_it_is_let_go_when_idle_and_closed_for_good(fork_server: ForkServer, trained: Trained, tmp_path: Path) -> None:
    chat_process = ChatProcess(0.3, tmp_path / "chat.log", fork_server)
    list(ask(chat_process, trained))
    assert chat_process.status.idle_until is not None
    until(lambda: chat_process.pid is None, 10, "the end of the idle process")
    assert chat_process.status.state == "empty"
    chat_process.close()
    with pytest.raises(ConflictError, match="about to end"):
        list(ask(chat_process, trained))
