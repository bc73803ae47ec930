"""Start processes by forking a server process that has already imported their libraries."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from merlina.executors.idle_timeout import IdleTimer
from merlina.processes import identify

_log = logging.getLogger(__name__)
_REPLY_SECONDS = 5.0
_SERVER_ONLY = {"API_KEY", "MERLINA_API_KEY", "DATABASE_URL", "HF_TOKEN", "WANDB_API_KEY"}
_ALWAYS = {
    "PYTHONUNBUFFERED": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    # Importing must neither start threads nor open the GPU: see worker/fork_server.
    "OPENBLAS_NUM_THREADS": "1",
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
}
Role = Literal["worker", "helper", "chat"]
# The exit code of a child whose fork server died first; no real process can have it.
UNSEEN = 256


class NoForkServerError(OSError):
    """No fork server is available; start the process directly instead."""


def child_environment() -> dict[str, str]:
    """Return the environment for child processes, without the variables reserved for the server."""
    environment = {name: value for name, value in os.environ.items() if name.upper() not in _SERVER_ONLY} | _ALWAYS
    # Spinning threads slow a run severely when other processes compete for the cores.
    environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # torch.compile is not used; enabling it adds a second to every process that imports bitsandbytes.
    environment.setdefault("TORCHDYNAMO_DISABLE", "1")
    return environment


def shown_gpus(gpus: Sequence[int] | None) -> dict[str, str]:
    """Return the variables that restrict a process to these GPUs; empty if `gpus` is None."""
    if gpus is None:
        return {}
    # NVML counts by bus; CUDA must count the same way for the indices to mean the same cards.
    return {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": ",".join(map(str, gpus))}


@dataclass
class _Process:
    process: subprocess.Popen[bytes]
    connection: socket.socket
    ready: threading.Event = field(default_factory=threading.Event)

    def request(self, request: Mapping[str, Any], files: Sequence[int] = ()) -> dict[str, Any]:
        """Send a request and return the reply. Raises OSError if none arrives."""
        line = json.dumps(request).encode() + b"\n"
        sent = socket.send_fds(self.connection, [line], files)
        self.connection.sendall(line[sent:])
        return self.read()

    def read(self) -> dict[str, Any]:
        line = b""
        while not line.endswith(b"\n"):
            chunk = self.connection.recv(1 << 16)
            if not chunk:
                raise OSError("the fork server is gone")
            line += chunk
        reply: dict[str, Any] = json.loads(line)
        return reply

    def end(self) -> int:
        """Kill the process if it still runs, and return its exit code."""
        self.connection.close()
        self.process.kill()
        return self.process.wait()


class ForkServer:
    """Starts its process on first use, and ends it after `idle_seconds` without forks or living children.

    Calls come from any thread. The output of its imports goes to `log_file`. Linux only: on macOS, system libraries do
    not work after a fork.
    """

    def __init__(self, idle_seconds: float, log_file: Path) -> None:
        self._idle = IdleTimer(idle_seconds, self._end_if_unused)
        self._log_file = log_file
        self._lock = threading.Lock()
        self._current: _Process | None = None
        self._children: list[Forked] = []
        self._closed = False
        self._is_unavailable = sys.platform != "linux"

    @property
    def pid(self) -> int | None:
        """Return the process id of the fork server; None if it does not run."""
        current = self._current
        return current.process.pid if current and current.process.poll() is None else None

    def fork(
        self,
        role: Role,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        files: Sequence[int],
        *,
        patience: float = 0.0,
    ) -> Forked:
        """Fork a process in a session of its own; `files` are its standard streams, followed by those of its role.

        Waits up to `patience` seconds for a fork server that is still importing. Raises NoForkServerError.
        """
        with self._lock:
            current = self._running()
        if current is None or not current.ready.wait(patience):
            raise NoForkServerError("no fork server is ready")
        environment_read, environment_write = os.pipe()
        request = {"run": role, "arguments": list(arguments)}
        # If the child was killed before it could read, the caller finds it dead.
        with contextlib.suppress(BrokenPipeError), os.fdopen(environment_write, "wb") as pipe:
            try:
                with self._lock:
                    child = self._request_child(current, request, [environment_read, *files])
            finally:
                os.close(environment_read)
            # The child starts only after this write, so that a child whose pid was lost never runs.
            pipe.write(json.dumps(dict(environment)).encode() + b"\n")
        return child

    def exit_code(self, child: Forked) -> int | None:
        """Return the exit code as subprocess does; None if the child lives or its fork server is lost."""
        with self._lock:
            self._request_exit_code(child)
        return child.seen_exit_code

    def _request_child(self, current: _Process, request: Mapping[str, Any], files: Sequence[int]) -> Forked:
        try:
            reply = current.request(request, files)
        except (OSError, ValueError) as error:
            self._drop(current)
            raise NoForkServerError(f"the fork server does not reply: {error}") from error
        if "error" in reply:
            raise NoForkServerError(f"the fork server cannot fork: {reply['error']}")
        child = Forked(reply["pid"], self, current)
        self._children.append(child)
        self._idle.start()
        return child

    def _request_exit_code(self, child: Forked) -> None:
        if child.seen_exit_code is not None or child.parent is not self._current:
            return
        try:
            child.seen_exit_code = child.parent.request({"exit_code": child.pid})["exit_code"]
        except (OSError, ValueError):
            self._drop(child.parent)

    def close(self) -> None:
        """End the fork server. Its children continue."""
        with self._lock:
            self._closed = True
            if self._current is not None:
                self._drop(self._current)

    def _running(self) -> _Process | None:
        if self._current is not None and self._current.process.poll() is not None:
            self._drop(self._current)
        if self._current is None and not self._closed and not self._is_unavailable:
            try:
                self._current = self._start()
            except OSError as error:
                _log.warning("no fork server can be started: %s", error)
        return self._current

    def _start(self) -> _Process:
        ours, theirs = socket.socketpair()
        with theirs, self._log_file.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "merlina.worker.fork_server"],
                stdin=theirs.fileno(),
                stdout=log,
                stderr=log,
                env=child_environment(),
                start_new_session=True,
            )
        started = _Process(process, ours)
        threading.Thread(target=self._await_ready, args=(started,), name="fork server's start", daemon=True).start()
        return started

    def _await_ready(self, started: _Process) -> None:
        # If it ends before it is ready, the next request fails.
        with contextlib.suppress(OSError, ValueError):
            started.read()
            started.connection.settimeout(_REPLY_SECONDS)
        started.ready.set()
        with self._lock:
            if started is self._current:
                self._idle.start()

    def _end_if_unused(self) -> None:
        with self._lock:
            for child in self._children:
                self._request_exit_code(child)
            self._children = [child for child in self._children if child.is_alive()]
            if self._current is None:
                return
            if self._children:
                self._idle.start()
            else:
                self._drop(self._current)

    def _drop(self, process: _Process) -> None:
        if process is self._current:
            self._current = None
            self._idle.cancel()
        if process.end() > 0:
            # A start that failed by itself would fail again; a fork server that was killed may be started again.
            self._is_unavailable = True
            _log.warning(
                "the fork server cannot be used, so every process starts with its imports; see %s", self._log_file
            )


@dataclass(eq=False)
class Forked:
    """A forked process, with the parts of the interface of subprocess.Popen that its callers use."""

    pid: int
    server: ForkServer
    parent: _Process
    seen_exit_code: int | None = None

    def __post_init__(self) -> None:
        self._identity = identify(self.pid)

    def poll(self) -> int | None:
        """Return the exit code; None if it runs, UNSEEN if its fork server died first."""
        code = self.server.exit_code(self)
        if code is not None or self.is_alive():
            return code
        code = self.server.exit_code(self)
        return UNSEEN if code is None else code

    def is_alive(self) -> bool:
        return self._identity is not None and self._identity.is_alive()

    def wait(self, seconds: float = 5.0) -> int | None:
        """Wait up to `seconds` and return the exit code; None if it still runs."""
        until = time.monotonic() + seconds
        while self.is_alive() and time.monotonic() < until:
            time.sleep(0.01)
        return self.poll()
