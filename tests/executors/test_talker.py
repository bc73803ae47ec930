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

from merlina.errors import BusyError, ConflictError, HelperError, InvalidRequestError, NoRoomError
from merlina.executors.fork_server import ForkServer
from merlina.executors.talker import Admission, Claim, Talker
from tests.harness import has_ended, until
from tests.talk import ADMITTED, QUESTION, Trained

LONG = 400


@pytest.fixture
def talker(fork_server: ForkServer, tmp_path: Path) -> Iterator[Talker]:
    talker = Talker(60, tmp_path / "talk.log", fork_server)
    yield talker
    talker.close()


def ask(talker: Talker, trained: Trained, tokens: int = 3, **changes: Any) -> Any:
    sampling = {"max_new_tokens": tokens, "temperature": 1.5, "top_p": 1.0, "seed": 1, **changes}
    question = {"side": "tuned", "messages": [{"role": "user", "content": QUESTION}], "sampling": sampling}
    return talker.answer(trained.order(), ADMITTED, question, threading.Event())


def test_an_answer_that_is_given_up_ends_at_once_and_the_next_is_whole(talker: Talker, trained: Trained) -> None:
    whole = list(ask(talker, trained, LONG, seed=7))
    began = time.monotonic()
    again = list(ask(talker, trained, LONG, seed=7))
    needed, pid = time.monotonic() - began, talker.pid
    assert [event.get("text") for event in again] == [event.get("text") for event in whole]
    assert again[-1]["tokens"] > LONG / 2
    given_up = ask(talker, trained, LONG, seed=7)
    assert [next(given_up)["type"] for _ in range(3)] == ["begin", "text", "text"]
    assert talker.status.state == "answering"
    began = time.monotonic()
    given_up.close()
    assert time.monotonic() - began < needed / 4
    assert talker.status.state == "ready"
    assert len(list(ask(talker, trained))) == 6
    assert talker.pid == pid


def test_what_cannot_be_answered_is_refused_and_it_lives_on(talker: Talker, trained: Trained) -> None:
    long = {"side": "base", "messages": [{"role": "user", "content": "sky " * 600}], "sampling": {}}
    with pytest.raises(InvalidRequestError, match="512 positions"):
        next(talker.answer(trained.order(), ADMITTED, long, threading.Event()))
    pid = talker.pid
    assert next(ask(talker, trained))["prompt_tokens"] > 5
    assert talker.pid == pid


def test_a_release_waits_for_no_one_and_those_who_wait_are_told(talker: Talker, trained: Trained) -> None:
    answering = ask(talker, trained, LONG)
    next(answering)
    assert talker.pid is not None
    process = psutil.Process(talker.pid)
    refused: list[str] = []

    def wait_for_turn() -> None:
        try:
            next(ask(talker, trained))
        except ConflictError as error:
            refused.append(error.message)

    waiting = threading.Thread(target=wait_for_turn)
    waiting.start()
    until(lambda: len(psutil.Process().threads()) > 1 and waiting.is_alive(), 5, "someone who waits")
    assert talker.release("job_x needs its memory")
    assert has_ended(process)
    assert talker.status.state == "empty"
    # Nobody has read on meanwhile.
    with pytest.raises(ConflictError, match="job_x needs its memory"):
        list(answering)
    waiting.join(20)
    assert refused == ["The model was let go: job_x needs its memory"]
    assert talker.pid is None
    assert not talker.release("once more")
    assert next(ask(talker, trained))["type"] == "begin"


def test_a_death_is_told_and_the_next_question_loads_it_again(talker: Talker, trained: Trained) -> None:
    answering = ask(talker, trained, LONG)
    next(answering)
    pid = talker.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(HelperError, match="died"):
        list(answering)
    assert talker.status.state == "empty"
    assert next(ask(talker, trained))["type"] == "begin"
    assert talker.pid != pid


def test_a_claim_is_admitted_once_more_when_it_is_seen_and_a_refused_one_is_gone(
    talker: Talker, trained: Trained
) -> None:
    seen: list[tuple[str, Claim | None]] = []

    def refuse(claim: Claim) -> None:
        seen.append((talker.status.state, talker.status.claim))
        if seen[-1][0] == "loading":
            raise ConflictError("no room")

    with pytest.raises(ConflictError, match="no room"):
        talker.load(trained.order(), Admission(lambda: Claim(1, 700), refuse), threading.Event())
    assert seen == [("empty", None), ("loading", Claim(1, 700))]
    assert talker.status.claim is None
    assert talker.pid is None


def test_what_is_loaded_stays_where_another_may_not_be_loaded(talker: Talker, trained: Trained) -> None:
    talker.load(trained.order(), ADMITTED, threading.Event())
    before = talker.status

    def refuse(_: Claim) -> None:
        raise ConflictError("no room")

    other = replace(trained.order(), job_id="other")
    with pytest.raises(ConflictError, match="no room"):
        talker.load(other, Admission(lambda: Claim(None, 1), refuse), threading.Event())
    assert (talker.status.state, talker.status.order) == ("ready", before.order)


def test_what_was_forced_once_is_not_refused_until_it_is_let_go(talker: Talker, trained: Trained) -> None:
    def refuse(_: Claim) -> None:
        raise NoRoomError("no room")

    def load(attempt: int, admission: Admission, **changes: Any) -> int | None:
        talker.load(replace(trained.order(), attempt=attempt, **changes), admission, threading.Event())
        return talker.pid

    refused = Admission(ADMITTED.plan, refuse)
    first = load(1, ADMITTED)
    # It is there already, and forced from now on.
    assert load(1, replace(refused, forced=True)) == first
    assert load(2, refused) != first
    assert load(3, refused) is not None
    with pytest.raises(NoRoomError):
        load(1, refused, job_id="other")
    assert talker.status.forced
    talker.release("once")
    with pytest.raises(NoRoomError):
        load(3, refused)


def test_what_a_later_attempt_saved_is_loaded_anew(talker: Talker, trained: Trained) -> None:
    talker.load(trained.order(), ADMITTED, threading.Event())
    first = talker.pid
    talker.load(trained.order(), ADMITTED, threading.Event())
    assert talker.pid == first
    talker.load(replace(trained.order(), attempt=2), ADMITTED, threading.Event())
    assert talker.pid != first


def test_who_has_gone_waits_no_longer(talker: Talker, trained: Trained) -> None:
    answering = ask(talker, trained, LONG)
    next(answering)
    gone = threading.Event()
    gone.set()
    with pytest.raises(BusyError):
        talker.load(trained.order(), ADMITTED, gone)
    answering.close()


def test_it_is_let_go_when_idle_and_closed_for_good(fork_server: ForkServer, trained: Trained, tmp_path: Path) -> None:
    talker = Talker(0.3, tmp_path / "talk.log", fork_server)
    list(ask(talker, trained))
    assert talker.status.idle_until is not None
    until(lambda: talker.pid is None, 10, "the end of the idle process")
    assert talker.status.state == "empty"
    talker.close()
    with pytest.raises(ConflictError, match="about to end"):
        list(ask(talker, trained))
