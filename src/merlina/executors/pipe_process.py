"""A process that is asked through one pipe and answers through another, a JSON object a line."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal

from merlina import errors
from merlina.errors import HelperError, MerlinaError
from merlina.executors.fork_server import Forked, ForkServer, NoForkServerError

_IMPORT_SECONDS = 60.0
Role = Literal["helper", "chat"]


@dataclass
class PipeProcess:
    """One of `merlina.worker`'s modules that answer questions, in a session of its own."""

    handle: subprocess.Popen[bytes] | Forked
    _questions: BinaryIO
    _answers: BinaryIO
    _read: bytearray = field(default_factory=bytearray)

    @staticmethod
    def start(
        role: Role, environment: Mapping[str, str], log_file: Path, fork_server: ForkServer | None
    ) -> PipeProcess:
        """Forked where there is a fork server. What its libraries print goes to `log_file`. Raises OSError."""
        questions, answers = os.pipe(), os.pipe()
        with log_file.open("ab") as log:
            files = [questions[0], answers[1], log.fileno()]
            handle: subprocess.Popen[bytes] | Forked
            try:
                if fork_server is None:
                    raise NoForkServerError
                handle = fork_server.fork(role, [], environment, files, patience=_IMPORT_SECONDS)
            except NoForkServerError:
                command = [sys.executable, "-m", f"merlina.worker.{role}"]
                handle = subprocess.Popen(
                    command, stdin=files[0], stdout=files[1], stderr=log, env=environment, start_new_session=True
                )
            finally:
                os.close(questions[0])
                os.close(answers[1])
        return PipeProcess(handle, os.fdopen(questions[1], "wb"), os.fdopen(answers[0], "rb"))

    @property
    def lives(self) -> bool:
        return self.handle.poll() is None

    def send(self, question: Mapping[str, Any]) -> None:
        """Whether a dead process was asked shows when its answer is read."""
        with contextlib.suppress(BrokenPipeError):
            self._questions.write(json.dumps(question).encode() + b"\n")
            self._questions.flush()

    def receive(self, deadline: float | None = None) -> dict[str, Any]:
        """The next answer. Raises EOFError where it died, TimeoutError past `deadline` (of time.monotonic)."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._answers, selectors.EVENT_READ)
            while b"\n" not in self._read:
                left = None if deadline is None else max(0.0, deadline - time.monotonic())
                if not selector.select(left):
                    raise TimeoutError
                chunk = os.read(self._answers.fileno(), 1 << 16)
                if not chunk:
                    raise EOFError
                self._read += chunk
        line, _, rest = self._read.partition(b"\n")
        self._read = rest
        answer: dict[str, Any] = json.loads(line)
        return answer

    def kill(self) -> None:
        """Ends it at once, with what it has started; whoever reads its answers is told."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.handle.pid, signal.SIGKILL)

    def end(self) -> None:
        """Kills it, and waits until it is gone with all its memory."""
        self.kill()
        self.handle.wait()
        for pipe in (self._questions, self._answers):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


def as_error(error: Mapping[str, str]) -> MerlinaError:
    """What went wrong in the process, as the same error of our tree."""
    kind = getattr(errors, error["kind"], HelperError)
    known = isinstance(kind, type) and issubclass(kind, MerlinaError)
    return kind(error["message"]) if known else HelperError(error["message"])
