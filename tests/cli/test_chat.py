"""`merlina chat` with a real server: answers in scripts, and a conversation on a terminal."""

from __future__ import annotations

import contextlib
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.chat.trained import QUESTION, Trained, reference_answer
from tests.harness import until

pytestmark = pytest.mark.slow

GREEDY = ("--temperature", "0", "--max-new-tokens", "20")
COMMAND = (sys.executable, "-m", "merlina.cli.main", "chat")


@pytest.fixture(autouse=True, scope="module")
def _unloaded(trained: Trained) -> Iterator[None]:
    yield
    httpx.delete(f"{trained.server.url}/chat")


def environment(trained: Trained) -> dict[str, str]:
    return {**os.environ, "MERLINA_URL": trained.server.url}


def answer(trained: Trained, *arguments: str, given: str = "") -> subprocess.CompletedProcess[str]:
    command = [*COMMAND, *arguments, *GREEDY]
    return subprocess.run(
        command, env=environment(trained), input=given, capture_output=True, text=True, timeout=120, check=False
    )


def test_one_question_is_answered_as_argument_or_from_standard_input(trained: Trained, tiny_model: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(trained.folder)
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": QUESTION}]
    expected = reference_answer(base, tokenizer, messages, 20)
    options = (trained.job_id, "--side", "base", "--system", "Be brief.")
    first, second = answer(trained, *options, QUESTION), answer(trained, *options, given=f"{QUESTION}\n")
    assert first.returncode == second.returncode == 0
    assert first.stdout == second.stdout == f"{expected}\n"
    assert first.stderr in ("", "(truncated after 20 tokens: max_new_tokens)\n")
    tuned = answer(trained, trained.job_id, "--system", "Be brief.", QUESTION)
    assert tuned.stdout not in ("", first.stdout)


def test_mistakes_are_explained_in_one_sentence(trained: Trained) -> None:
    nothing = answer(trained, trained.job_id, given=" \n")
    assert (nothing.returncode, nothing.stdout) == (1, "")
    assert "The question cannot be asked" in nothing.stderr
    unknown = answer(trained, "job_none", QUESTION)
    assert (unknown.returncode, unknown.stdout, unknown.stderr) == (1, "", "Job not found\n")


def test_a_conversation_on_a_terminal(trained: Trained) -> None:
    controller, terminal = pty.openpty()
    command = [*COMMAND, trained.job_id, *GREEDY]
    process = subprocess.Popen(
        command, env={**environment(trained), "TERM": "dumb"}, stdin=terminal, stdout=terminal, stderr=terminal
    )
    os.close(terminal)
    os.set_blocking(controller, False)
    shown = ""

    def prompts() -> int:
        nonlocal shown
        with contextlib.suppress(BlockingIOError):
            shown += os.read(controller, 65_536).decode(errors="replace")
        return shown.count("> ")

    def is_interrupted() -> bool:
        # A signal between the prompt and the wait for a line is noticed only with the next key, so it is repeated.
        if prompts() > 7:
            return True
        process.send_signal(signal.SIGINT)
        return False

    try:
        until(lambda: prompts() == 1)
        for number, line in enumerate((QUESTION, "/base", QUESTION, "/new", "/tuned", QUESTION), 2):
            os.write(controller, f"{line}\n".encode())
            until(lambda number=number: prompts() == number)  # type: ignore[misc]
        until(is_interrupted, interval=2)
        os.write(controller, b"\x04")
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
        os.close(controller)
    _, first, _, second, _, _, third, *_ = shown.replace("\r", "").split("> ")
    # The answer of the base model follows the one of the tuned model; after /new, the first one is repeated.
    assert first == third
    assert first != second
