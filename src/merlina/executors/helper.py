"""The caller of the helper process: started on first need, asked one thing at a time, let go when idle."""

from __future__ import annotations

import itertools
import os
import threading
import time
from pathlib import Path
from typing import Any

from merlina.errors import BusyError, HelperError
from merlina.executors.fork_server import ForkServer, child_environment
from merlina.executors.idle import IdleTimer
from merlina.executors.piped import PipedProcess, as_error

_TIMEOUT_SECONDS = 180.0
# Each waiting call holds one of the server's 40 request threads.
_MOST_WAITING = 16


class Helper:
    """A process of `merlina.worker.helper`, forked where there is a fork server.

    Calls come from any thread and wait for each other.
    What its libraries print goes to `log_file`.
    """

    def __init__(self, idle_seconds: float, log_file: Path, fork_server: ForkServer | None = None) -> None:
        self._log_file = log_file
        self._fork_server = fork_server
        self._idle = IdleTimer(idle_seconds, self._let_go)
        self._lock = threading.Lock()
        self._places = threading.BoundedSemaphore(_MOST_WAITING)
        self._process: PipedProcess | None = None
        self._numbers = itertools.count(1)
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
                self._idle.cancel()
                self._refuse_when_closed()
                try:
                    return self._ask(operation, arguments, time.monotonic() + timeout)
                finally:
                    self._idle.start()
        finally:
            self._places.release()

    def close(self) -> None:
        """Ends the process, if there is one; a call that is under way raises BusyError, as does every later one."""
        self._closed = True
        process = self._process
        if process is not None:
            process.kill()
        with self._lock:
            self._idle.cancel()
            self._end()

    def _let_go(self) -> None:
        """Ends the process when it was idle for long enough."""
        with self._lock:
            self._end()

    @property
    def pid(self) -> int | None:
        """The helper's process, while there is one."""
        process = self._process
        return process.handle.pid if process and process.lives else None

    def _ask(self, operation: str, arguments: dict[str, Any], deadline: float) -> Any:
        process = self._running()
        number = next(self._numbers)
        process.send({"id": number, "op": operation, "args": arguments})
        answer = self._receive(process, operation, deadline)
        assert answer["id"] == number
        if "error" in answer:
            raise as_error(answer["error"])
        return answer["result"]

    def _refuse_when_closed(self) -> None:
        if self._closed:
            raise BusyError("The server is about to end; ask again when it is back")

    def _running(self) -> PipedProcess:
        if self._process is None or not self._process.lives:
            self._end()
            environment = child_environment()
            if "HF_TOKEN" in os.environ:
                environment["HF_TOKEN"] = os.environ["HF_TOKEN"]
            self._process = PipedProcess.start("helper", environment, self._log_file, self._fork_server)
        return self._process

    def _receive(self, process: PipedProcess, operation: str, deadline: float) -> dict[str, Any]:
        try:
            return process.receive(deadline)
        except TimeoutError as error:
            self._end()
            raise HelperError(f"{operation} took too long, so the helper process was ended; try again") from error
        except EOFError as error:
            code = process.handle.wait()
            self._refuse_when_closed()
            raise HelperError(f"The helper process died (exit code {code}) during {operation}; try again") from error

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.end()
