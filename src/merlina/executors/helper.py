"""The caller of the helper process: started on first need, asked one thing at a time, let go when idle."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from merlina import errors
from merlina.errors import BusyError, HelperError, MerlinaError
from merlina.executors.fork_server import Forked, ForkServer, NoForkServerError, child_environment

_TIMEOUT_SECONDS = 180.0
_IMPORT_SECONDS = 60.0
# Each waiting call holds one of the server's 40 request threads.
_MOST_WAITING = 16


@dataclass(frozen=True)
class _Process:
    handle: subprocess.Popen[bytes] | Forked
    stdin: BinaryIO
    stdout: BinaryIO


class Helper:
    """A process of `merlina.worker.helper`, forked where there is a fork server.

    Calls come from any thread and wait for each other.
    What its libraries print goes to `log_file`.
    """

    def __init__(self, idle_seconds: float, log_file: Path, fork_server: ForkServer | None = None) -> None:
        self._log_file = log_file
        self._fork_server = fork_server
        self._idle_seconds = idle_seconds
        self._lock = threading.Lock()
        self._places = threading.BoundedSemaphore(_MOST_WAITING)
        self._process: _Process | None = None
        self._numbers = itertools.count(1)
        self._idle_timer: threading.Timer | None = None
        self._closed = False

    def call(self, operation: str, *, timeout: float = _TIMEOUT_SECONDS, **arguments: Any) -> Any:
        """The operation's result. What went wrong there is raised here, as the same error of our tree.

        Raises HelperError where the helper dies or takes longer than `timeout` seconds; the next call starts another.
        Raises BusyError where so many others wait that this one would keep a thread from the rest of the server.
        """
        if not self._places.acquire(blocking=False):
            raise BusyError(f"{_MOST_WAITING} others wait for the helper process already; try again in a moment")
        try:
            with self._lock:
                self._cancel_timer()
                self._refuse_when_closed()
                try:
                    return self._ask(operation, arguments, time.monotonic() + timeout)
                finally:
                    self._start_timer()
        finally:
            self._places.release()

    def close(self) -> None:
        """Ends the process, if there is one; a call that is under way raises BusyError, as does every later one."""
        self._closed = True
        process = self._process
        if process is not None:
            _kill(process)
        with self._lock:
            self._cancel_timer()
            self._end()

    def _let_go(self) -> None:
        """Ends the process when it was idle for long enough."""
        with self._lock:
            self._end()

    @property
    def pid(self) -> int | None:
        """The helper's process, while there is one."""
        process = self._process
        return process.handle.pid if process and process.handle.poll() is None else None

    def _ask(self, operation: str, arguments: dict[str, Any], deadline: float) -> Any:
        process = self._running()
        number = next(self._numbers)
        request = json.dumps({"id": number, "op": operation, "args": arguments}) + "\n"
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(request.encode())
            process.stdin.flush()
        answer = json.loads(self._read_line(process, operation, deadline))
        assert answer["id"] == number
        if "error" in answer:
            raise _as_error(answer["error"])
        return answer["result"]

    def _refuse_when_closed(self) -> None:
        if self._closed:
            raise BusyError("The server is about to end; ask again when it is back")

    def _running(self) -> _Process:
        if self._process is None or self._process.handle.poll() is not None:
            self._end()
            self._process = self._start()
        return self._process

    def _start(self) -> _Process:
        environment = child_environment()
        if "HF_TOKEN" in os.environ:
            environment["HF_TOKEN"] = os.environ["HF_TOKEN"]
        requests, answers = os.pipe(), os.pipe()
        with self._log_file.open("ab") as log:
            files = [requests[0], answers[1], log.fileno()]
            handle: subprocess.Popen[bytes] | Forked
            try:
                if self._fork_server is None:
                    raise NoForkServerError
                handle = self._fork_server.fork("helper", [], environment, files, patience=_IMPORT_SECONDS)
            except NoForkServerError:
                command = [sys.executable, "-m", "merlina.worker.helper"]
                handle = subprocess.Popen(
                    command, stdin=files[0], stdout=files[1], stderr=log, env=environment, start_new_session=True
                )
            finally:
                os.close(requests[0])
                os.close(answers[1])
        return _Process(handle, os.fdopen(requests[1], "wb"), os.fdopen(answers[0], "rb"))

    def _read_line(self, process: _Process, operation: str, deadline: float) -> bytes:
        line = b""
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while not line.endswith(b"\n"):
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    self._end()
                    raise HelperError(f"{operation} took too long, so the helper process was ended; try again")
                chunk = os.read(process.stdout.fileno(), 1 << 16)
                if not chunk:
                    code = process.handle.wait()
                    self._refuse_when_closed()
                    raise HelperError(f"The helper process died (exit code {code}) during {operation}; try again")
                line += chunk
        return line

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        _kill(process)
        process.handle.wait()
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()

    def _start_timer(self) -> None:
        self._idle_timer = threading.Timer(self._idle_seconds, self._let_go)
        self._idle_timer.daemon = True
        self._idle_timer.start()

    def _cancel_timer(self) -> None:
        if self._idle_timer is not None:
            self._idle_timer.cancel()
            self._idle_timer = None


def _kill(process: _Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.handle.pid, signal.SIGKILL)


def _as_error(error: dict[str, str]) -> MerlinaError:
    kind = getattr(errors, error["kind"], HelperError)
    known = isinstance(kind, type) and issubclass(kind, MerlinaError)
    return kind(error["message"]) if known else HelperError(error["message"])
