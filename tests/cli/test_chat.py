"""`merlina chat` with a real server: answers in scripts, and a conversation on a terminal."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
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
    httpx.delete(f"{trained.server.url}/chat", timeout=60)


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


@contextlib.contextmanager
def server_that_answers(*texts: str) -> Iterator[str]:
    """A server that answers each question with these pieces; its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            lines: list[dict[str, object]] = [
                {"type": "begin", "job_id": "job_1", "side": "tuned", "prompt": "", "prompt_tokens": 1},
                *({"type": "text", "text": text} for text in texts),
                {"type": "end", "reason": "end_token", "tokens": 3, "seconds": 0.1},
            ]
            body = "".join(f"{json.dumps(line)}\n" for line in lines).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/x-ndjson")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_an_answer_is_printed_as_it_is_except_for_control_characters() -> None:
    with server_that_answers("A :smi", "le: [bold]\tand\n", "  \x1b[31mred\N{RIGHT-TO-LEFT OVERRIDE}.") as url:
        command = [*COMMAND, "job_1", "Which?", "--url", url]
        done = subprocess.run(command, capture_output=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.decode() == "A :smile: [bold]\tand\n  \\x1b[31mred\\u202e.\n"


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

    try:
        until(lambda: prompts() == 1)
        for number, line in enumerate((QUESTION, "/base", QUESTION, "/new", "/tuned", QUESTION, "/bas"), 2):
            os.write(controller, f"{line}\n".encode())
            until(lambda number=number: prompts() == number)  # type: ignore[misc]
        # Ctrl-C does not end the chat. A signal just before the wait for a line is noticed with the next key.
        process.send_signal(signal.SIGINT)
        os.write(controller, b"\n")
        until(lambda: prompts() > 8)
        os.write(controller, b"\x04")
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
        os.close(controller)
    _, first, _, second, _, _, third, mistyped, *_ = shown.replace("\r", "").split("> ")
    assert "/bas is not a command" in mistyped
    # The answer of the base model follows the one of the tuned model; after /new, the first one is repeated.
    assert first == third
    assert first != second
