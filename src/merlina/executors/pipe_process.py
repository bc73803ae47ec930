"""A child process that exchanges JSON lines with the server over two pipes."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from merlina import errors
from merlina.errors import HelperError, MerlinaError
from merlina.executors.spare_processes import Role, SpareProcesses, start_process


@dataclass
class PipeProcess:
    """A process of `merlina.worker.helper` or `merlina.worker.chat`, in a session of its own."""

    handle: subprocess.Popen[bytes]
    _requests: BinaryIO
    _replies: BinaryIO
    _read: bytearray = field(default_factory=bytearray)

    @staticmethod
    def start(role: Role, environment: Mapping[str, str], log_file: Path, spares: SpareProcesses | None) -> PipeProcess:
        """Start the process, its libraries' output appended to `log_file`. Raises OSError."""
        requests, replies = os.pipe(), os.pipe()
        start = start_process if spares is None else spares.start
        try:
            with log_file.open("ab") as log:
                handle = start(role, [], environment, [requests[0], replies[1], log.fileno()])
        finally:
            os.close(requests[0])
            os.close(replies[1])
        return PipeProcess(handle, os.fdopen(requests[1], "wb"), os.fdopen(replies[0], "rb"))

    @property
    def is_alive(self) -> bool:
        return self.handle.poll() is None

    def send(self, request: Mapping[str, Any]) -> None:
        """Send a request. If the process is dead, the next `receive` raises EOFError."""
        with contextlib.suppress(BrokenPipeError):
            self._requests.write(json.dumps(request).encode() + b"\n")
            self._requests.flush()

    def receive(self, deadline: float | None = None) -> dict[str, Any]:
        """Return the next reply. Raises EOFError if the process died, TimeoutError after `deadline` (monotonic)."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._replies, selectors.EVENT_READ)
            while b"\n" not in self._read:
                left = None if deadline is None else max(0.0, deadline - time.monotonic())
                if not selector.select(left):
                    raise TimeoutError
                chunk = os.read(self._replies.fileno(), 1 << 16)
                if not chunk:
                    raise EOFError
                self._read += chunk
        line, _, rest = self._read.partition(b"\n")
        self._read = rest
        reply: dict[str, Any] = json.loads(line)
        return reply

    def kill(self) -> None:
        """Kill the process and its children; a pending `receive` raises EOFError."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.handle.pid, signal.SIGKILL)

    def end(self) -> None:
        """Kill the process and wait until it has ended and its memory is free."""
        self.kill()
        self.handle.wait()
        for pipe in (self._requests, self._replies):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


def as_error(error: Mapping[str, str]) -> MerlinaError:
    """Return the reported error as the MerlinaError subclass of that name."""
    kind = getattr(errors, error["kind"], HelperError)
    known = isinstance(kind, type) and issubclass(kind, MerlinaError)
    return kind(error["message"]) if known else HelperError(error["message"])
