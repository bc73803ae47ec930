"""The caller of the fork server: processes that have their imports behind them when they begin."""

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
_ANSWER_SECONDS = 5.0
_SERVER_ONLY = {"API_KEY", "MERLINA_API_KEY", "DATABASE_URL", "HF_TOKEN", "WANDB_API_KEY"}
_ALWAYS = {
    "PYTHONUNBUFFERED": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    # Neither library is to start a thread, nor torch to open the GPU, by being imported: see worker/fork_server.
    "OPENBLAS_NUM_THREADS": "1",
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
}
Role = Literal["worker", "helper", "chat"]
# No process can end with this exit code: that of one whose fork server died before it did.
UNSEEN = 256


class NoForkServerError(OSError):
    """There is none to fork from now; a process of one's own does the same, later."""


def child_environment() -> dict[str, str]:
    """This process's environment without what only the server may know, for any process that it starts."""
    environment = {name: value for name, value in os.environ.items() if name.upper() not in _SERVER_ONLY} | _ALWAYS
    # Threads that spin while they wait bring a run to a halt as soon as anything else wants a core.
    environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Nothing here is compiled by torch; to be able to would take each process that imports bitsandbytes a second.
    environment.setdefault("TORCHDYNAMO_DISABLE", "1")
    return environment


def shown_gpus(gpus: Sequence[int] | None) -> dict[str, str]:
    """Variables by which a process sees these GPUs alone; none where it may see all."""
    if gpus is None:
        return {}
    # NVML counts by bus; CUDA must count the same way for the indices to mean the same cards.
    return {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": ",".join(map(str, gpus))}


@dataclass
class _Process:
    process: subprocess.Popen[bytes]
    connection: socket.socket
    ready: threading.Event = field(default_factory=threading.Event)

    def ask(self, request: Mapping[str, Any], files: Sequence[int] = ()) -> dict[str, Any]:
        """Raises OSError where no answer comes."""
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
        answer: dict[str, Any] = json.loads(line)
        return answer

    def end(self) -> int:
        """Its exit code, which is its own where it has ended already."""
        self.connection.close()
        self.process.kill()
        return self.process.wait()


class ForkServer:
    """Started on first need, let go when nothing was forked from it for `idle_seconds` and none of its children lives.

    Calls come from any thread. What its imports print goes to `log_file`. Only Linux has one: on macOS, the system's
    own libraries can't be used after a fork.
    """

    def __init__(self, idle_seconds: float, log_file: Path) -> None:
        self._idle = IdleTimer(idle_seconds, self._let_go)
        self._log_file = log_file
        self._lock = threading.Lock()
        self._current: _Process | None = None
        self._children: list[Forked] = []
        self._closed = False
        self._hopeless = sys.platform != "linux"

    @property
    def pid(self) -> int | None:
        """The process to fork from, while there is one."""
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
        """A new process in a session of its own; `files` are its standard ones and then what its role takes.

        Waits up to `patience` seconds for a fork server that is still importing. Raises NoForkServerError.
        """
        with self._lock:
            current = self._running()
        if current is None or not current.ready.wait(patience):
            raise NoForkServerError("no fork server is ready")
        told, telling = os.pipe()
        request = {"run": role, "arguments": list(arguments)}
        # One that was killed before it could read is found dead by the caller.
        with contextlib.suppress(BrokenPipeError), os.fdopen(telling, "wb") as pipe:
            try:
                with self._lock:
                    child = self._ask_for_child(current, request, [told, *files])
            finally:
                os.close(told)
            # Only this lets it begin: a child that we don't know of must not run beside the one started instead.
            pipe.write(json.dumps(dict(environment)).encode() + b"\n")
        return child

    def exit_code(self, child: Forked) -> int | None:
        """As subprocess has it; None where it lives, or died unseen."""
        with self._lock:
            self._ask_how_it_ended(child)
        return child.seen_exit_code

    def _ask_for_child(self, current: _Process, request: Mapping[str, Any], files: Sequence[int]) -> Forked:
        try:
            answer = current.ask(request, files)
        except (OSError, ValueError) as error:
            self._drop(current)
            raise NoForkServerError(f"the fork server doesn't answer: {error}") from error
        if "error" in answer:
            raise NoForkServerError(f"the fork server can't fork: {answer['error']}")
        child = Forked(answer["pid"], self, current)
        self._children.append(child)
        self._idle.start()
        return child

    def _ask_how_it_ended(self, child: Forked) -> None:
        if child.seen_exit_code is not None or child.parent is not self._current:
            return
        try:
            child.seen_exit_code = child.parent.ask({"exit_code": child.pid})["exit_code"]
        except (OSError, ValueError):
            self._drop(child.parent)

    def close(self) -> None:
        """Ends it; what was forked from it goes on."""
        with self._lock:
            self._closed = True
            if self._current is not None:
                self._drop(self._current)

    def _running(self) -> _Process | None:
        if self._current is not None and self._current.process.poll() is not None:
            self._drop(self._current)
        if self._current is None and not self._closed and not self._hopeless:
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
        # One that ends before it is ready is found out by whoever asks it next.
        with contextlib.suppress(OSError, ValueError):
            started.read()
            started.connection.settimeout(_ANSWER_SECONDS)
        started.ready.set()
        with self._lock:
            if started is self._current:
                self._idle.start()

    def _let_go(self) -> None:
        with self._lock:
            for child in self._children:
                self._ask_how_it_ended(child)
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
            # It would end by itself the next time too; one that was killed may fare better.
            self._hopeless = True
            _log.warning("no process can be forked here, so each begins with its imports; see %s", self._log_file)


@dataclass(eq=False)
class Forked:
    """A process forked from a fork server: what of subprocess.Popen its callers need."""

    pid: int
    server: ForkServer
    parent: _Process
    seen_exit_code: int | None = None

    def __post_init__(self) -> None:
        self._identity = identify(self.pid)

    def poll(self) -> int | None:
        """Its exit code as subprocess has it, None where it lives, UNSEEN where nobody can tell any more."""
        code = self.server.exit_code(self)
        if code is not None or self.is_alive():
            return code
        code = self.server.exit_code(self)
        return UNSEEN if code is None else code

    def is_alive(self) -> bool:
        return self._identity is not None and self._identity.is_alive()

    def wait(self, seconds: float = 5.0) -> int | None:
        """Its exit code, once it has ended."""
        until = time.monotonic() + seconds
        while self.is_alive() and time.monotonic() < until:
            time.sleep(0.01)
        return self.poll()
