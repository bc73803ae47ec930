"""`python -m merlina.worker.fork_server`: imports the libraries of a run once, and forks a process for each role.

Importing takes seconds, a fork milliseconds. multiprocessing's own fork server is unsuitable: its children share one
environment, end with it, and do not report exit codes.

Standard input is a socket to the server. Each line is one JSON request, accompanied by file descriptors:
{"run": "worker", "helper" or "chat", "arguments": [...]} with the reply {"pid": N} or {"error": "reason"}, and
{"exit_code": pid} with the reply {"exit_code": code}, null while the child lives. The first line of output reports that
the process is ready. It exits at the end of its input; its children continue.

The first descriptor is a pipe from which the child reads its environment, a JSON object. Tokens therefore never enter
this process or other children, and a child whose pid did not reach the server exits without having started.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
from collections.abc import Callable, Iterable
from typing import Any

from setproctitle import setproctitle

from merlina.hardware.gpus import list_gpus
from merlina.worker.imports import import_without_gc

_MAX_FILES = 8
_REAP_SECONDS = 1.0
# Importing bitsandbytes, as peft does, opens every GPU, after which no child could use them. The other slow imports
# are these; the remaining ones take half a second.
_WITHOUT_BITSANDBYTES = (
    "datasets",
    "accelerate",
    "transformers.models.auto.modeling_auto",
    "transformers.models.llama.modeling_llama",
)
_EVERYTHING = (
    *_WITHOUT_BITSANDBYTES,
    "merlina.worker.run.run",
    "merlina.worker.helper.inspection",
    "merlina.worker.helper.previews",
)


class UnsafeToForkError(RuntimeError):
    """A fork now would leave the child without threads or a usable CUDA context."""


def main() -> int:
    setproctitle("merlina fork server")
    import_without_gc(_WITHOUT_BITSANDBYTES if list_gpus() else _EVERYTHING)
    try:
        with socket.socket(fileno=os.dup(0)) as server:
            child = _Forks(server).serve()
    except UnsafeToForkError as error:
        sys.stderr.write(f"No process can be forked from this one: {error}\n")
        return 1
    return child() if child else 0


def _check_is_safe() -> None:
    """Raise UnsafeToForkError if this process has threads or an open GPU, neither of which survives a fork."""
    import torch

    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        raise UnsafeToForkError("a library has opened the GPU while it was imported")
    threads = len(os.listdir("/proc/self/task"))
    if threads > 1:
        raise UnsafeToForkError(f"it has {threads} threads")


class _Forks:
    """Forks children on request, and keeps their exit codes by pid; None while they live."""

    def __init__(self, server: socket.socket) -> None:
        self._server = server
        self._exit_codes: dict[int, int | None] = {}

    def serve(self) -> Callable[[], int] | None:
        """Serve requests until the server disconnects, and return None; in a child, return its entry point.

        Raises UnsafeToForkError.
        """
        _check_is_safe()
        self._reply({"ready": os.getpid()})
        while received := self._receive():
            request, files = received
            self._reap()
            if "exit_code" in request:
                self._reply({"exit_code": self._exit_codes.get(request["exit_code"])})
                continue
            _check_is_safe()
            child = self._fork(request, files)
            if child is not None:
                return child
        return None

    def _receive(self) -> tuple[dict[str, Any], list[int]] | None:
        """Return the next request with its files; None once the server has disconnected. Reaps children."""
        self._server.settimeout(_REAP_SECONDS)
        while True:
            try:
                line, files, _, _ = socket.recv_fds(self._server, 1 << 16, _MAX_FILES)
                break
            except TimeoutError:
                self._reap()
            except OSError:
                return None
        self._server.settimeout(None)
        while not line.endswith(b"\n"):
            chunk = self._server.recv(1 << 16) if line else b""
            if not chunk:
                return None
            line += chunk
        return json.loads(line), files

    def _fork(self, request: dict[str, Any], files: list[int]) -> Callable[[], int] | None:
        """Fork a child. Returns None in the parent, and the child's entry point in the child."""
        ready_read, ready_write = os.pipe()
        try:
            pid = os.fork()
        except OSError as error:
            _close([ready_read, ready_write, *files])
            self._reply({"error": str(error)})
            return None
        if pid == 0:
            self._server.close()
            os.close(ready_read)
            os.setsid()
            os.close(ready_write)
            return lambda: _run_child(request, files)
        # All copies of a passed lock must be closed before the pid is reported.
        _close([ready_write, *files])
        # By then the child must lead its session, because the caller may kill it by process group.
        os.read(ready_read, 1)
        os.close(ready_read)
        self._exit_codes[pid] = None
        self._reply({"pid": pid})
        return None

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while (found := os.waitpid(-1, os.WNOHANG))[0]:
                self._exit_codes[found[0]] = os.waitstatus_to_exitcode(found[1])

    def _reply(self, content: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):
            self._server.sendall(json.dumps(content).encode() + b"\n")


def _close(files: Iterable[int]) -> None:
    for file in files:
        os.close(file)


def _run_child(request: dict[str, Any], files: list[int]) -> int:
    """Set up the child's streams and environment and run its role; return at once if no environment was sent."""
    environment, standard, further = files[0], files[1:4], files[4:]
    for number, file in enumerate(standard):
        os.dup2(file, number)
        os.close(file)
    with os.fdopen(environment, "rb") as pipe:
        content = pipe.read()
    if not content.endswith(b"\n"):
        return 0
    os.environ.clear()
    os.environ.update(json.loads(content))
    return _ROLES[request["run"]](request["arguments"], further)


def _worker(arguments: list[str], files: list[int]) -> int:
    from merlina.worker.__main__ import main

    return main([*arguments, "--lock-fd", str(files[0])])


def _helper(_arguments: list[str], _files: list[int]) -> int:
    from merlina.worker.helper.process import main

    main()
    return 0


def _chat(_arguments: list[str], _files: list[int]) -> int:
    from merlina.worker.chat.process import main

    main()
    return 0


_ROLES: dict[str, Callable[[list[str], list[int]], int]] = {"worker": _worker, "helper": _helper, "chat": _chat}


if __name__ == "__main__":
    sys.exit(main())
