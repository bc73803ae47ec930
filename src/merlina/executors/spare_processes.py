"""Start of workers, helper processes and chat processes, if possible from a spare process, started earlier."""

from __future__ import annotations

import json
import logging
import socket
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from merlina.domain.units import GIB
from merlina.executors.environment import child_environment, python_module
from merlina.executors.idle_timer import IdleTimer
from merlina.hardware.host import available_memory

Role = Literal["worker", "helper", "chat"]

_log = logging.getLogger(__name__)
_MODULES: Mapping[Role, str] = {
    "worker": "merlina.worker", "helper": "merlina.worker.helper", "chat": "merlina.worker.chat",
}  # fmt: skip
# A spare process is started if the first amount of RAM is available, and ended below the second.
_START_BYTES = 3 * GIB
_KEEP_BYTES = 2 * GIB
_CHECK_SECONDS = 10.0
_SEND_SECONDS = 5.0


def start_process(
    role: Role, arguments: Sequence[str], environment: Mapping[str, str], files: Sequence[int]
) -> subprocess.Popen[bytes]:
    """Start a process in a session of its own, which begins with its imports. Raises OSError.

    `files` are its standard input, output and error, then those that its role takes: a worker's is its run's lock.
    """
    stdin, stdout, stderr, *further = files
    command = [*python_module(_MODULES[role]), *arguments, *(f"--lock-fd={file}" for file in further)]
    return subprocess.Popen(
        command,
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        env=environment,
        pass_fds=further,
        start_new_session=True,
    )


@dataclass
class _Spare:
    """A process of `merlina.worker.spare` that waits for its assignment on `connection`, its standard input."""

    process: subprocess.Popen[bytes]
    connection: socket.socket

    def hand_over(self, assignment: bytes, files: Sequence[int]) -> bool:
        """Send the assignment. Return False if that failed, and end the process."""
        try:
            self.connection.settimeout(_SEND_SECONDS)
            sent = socket.send_fds(self.connection, [assignment], files)
            # Even an empty rest must not be sent: by then the process may have read all and closed the socket.
            if sent < len(assignment):
                self.connection.sendall(assignment[sent:])
        except OSError as error:
            _log.warning("the spare process %d could not take its assignment: %s", self.process.pid, error)
            self.end()
            return False
        self.connection.close()
        return True

    def end(self) -> None:
        self.connection.close()
        self.process.kill()
        self.process.wait()


class SpareProcesses:
    """Keeps at most one process started in advance.

    The first is started with the first process that could have used it, the next one whenever one has been used.

    The spare process is ended if memory is short, or if for `idle_seconds` no process was started and none is alive.
    Calls may come from any thread. The output of the imports is appended to `log_file`.
    """

    def __init__(self, idle_seconds: float, log_file: Path) -> None:
        self._idle_seconds = idle_seconds
        self._timer = IdleTimer(min(idle_seconds, _CHECK_SECONDS), self._check)
        self._log_file = log_file
        self._lock = threading.Lock()
        self._spare: _Spare | None = None
        self._started: list[subprocess.Popen[bytes]] = []
        self._used_at = 0.0
        self._closed = False

    @property
    def pid(self) -> int | None:
        """The process id of the spare process; None without one."""
        spare = self._spare
        return spare.process.pid if spare is not None and spare.process.poll() is None else None

    def start(
        self, role: Role, arguments: Sequence[str], environment: Mapping[str, str], files: Sequence[int]
    ) -> subprocess.Popen[bytes]:
        """Start a process as `start_process` does: the spare process if there is one, even if it is still importing."""
        assignment = {"role": role, "arguments": list(arguments), "environment": dict(environment)}
        with self._lock:
            spare, self._spare = self._spare, None
        if spare is not None and spare.hand_over(json.dumps(assignment).encode() + b"\n", files):
            process = spare.process
        else:
            process = start_process(role, arguments, environment, files)
        self._start_next(process)
        return process

    def close(self) -> None:
        """End the spare process; processes that have received an assignment continue."""
        with self._lock:
            self._closed = True
            self._end_spare()

    def _start_next(self, started: subprocess.Popen[bytes]) -> None:
        with self._lock:
            self._started.append(started)
            self._used_at = time.monotonic()
            if self._spare is None and not self._closed and available_memory() >= _START_BYTES:
                try:
                    self._spare = self._start_spare()
                except OSError as error:
                    _log.warning("no process can be started in advance: %s", error)
            self._timer.start()

    def _start_spare(self) -> _Spare:
        ours, theirs = socket.socketpair()
        with theirs, self._log_file.open("ab") as log:
            process = subprocess.Popen(
                python_module("merlina.worker.spare"),
                stdin=theirs.fileno(),
                stdout=log,
                stderr=log,
                env=child_environment(),
                start_new_session=True,
            )
        return _Spare(process, ours)

    def _check(self) -> None:
        """End the spare process if it is not needed; otherwise check again later."""
        with self._lock:
            self._started = [process for process in self._started if process.poll() is None]
            if self._started:
                self._used_at = time.monotonic()
            is_idle = time.monotonic() - self._used_at >= self._idle_seconds
            if is_idle or available_memory() < _KEEP_BYTES:
                self._end_spare()
            if self._spare is not None:
                self._timer.start()

    def _end_spare(self) -> None:
        self._timer.cancel()
        if self._spare is not None:
            self._spare.end()
            self._spare = None
