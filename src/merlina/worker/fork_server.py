"""`python -m merlina.worker.fork_server`: a process that has imported what runs need, and forks one for each.

Importing takes seconds and a fork milliseconds. multiprocessing's own fork server won't do: its children share one
environment, end with it, and tell their exit codes to nobody else.

Standard input is a socket to the server. One JSON object a line comes in, with the new process's open files beside it:
{"run": "worker", "helper" or "chat", "arguments": [...]}, answered by {"pid": N} or {"error": "why not"}; and
{"exit_code": pid}, answered by {"exit_code": code}, null while it lives. The first line out says that it is ready. It
ends when its input does; its children go on.

The first of the files is a pipe, from which the child itself reads its environment as a JSON object. So no token is
ever in this process, nor in a later child's copy of it; and a child whose pid never reached the server, which then
starts another, ends without having begun.
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
from merlina.worker.imports import import_at_once

_MOST_FILES = 8
_REAP_SECONDS = 1.0
# bitsandbytes, which peft imports, opens every GPU by being imported; after that no child could use them. These are
# what else takes long: with them behind it, the rest is half a second.
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
    """A child would lack something that this process has."""


def main() -> int:
    setproctitle("merlina fork server")
    import_at_once(_WITHOUT_BITSANDBYTES if list_gpus() else _EVERYTHING)
    try:
        with socket.socket(fileno=os.dup(0)) as server:
            child = _Forks(server).serve()
    except UnsafeToForkError as error:
        sys.stderr.write(f"No process can be forked from this one: {error}\n")
        return 1
    return child() if child else 0


def _refuse_where_unsafe() -> None:
    """Threads are not forked, and a CUDA context can't be. Raises UnsafeToForkError."""
    import torch

    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        raise UnsafeToForkError("a library has opened the GPU while it was imported")
    threads = len(os.listdir("/proc/self/task"))
    if threads > 1:
        raise UnsafeToForkError(f"it has {threads} threads")


class _Forks:
    """The children by pid, with the exit code of those that have ended."""

    def __init__(self, server: socket.socket) -> None:
        self._server = server
        self._exit_codes: dict[int, int | None] = {}

    def serve(self) -> Callable[[], int] | None:
        """Until the server is gone: None; or, in each child: what it is to do. Raises UnsafeToForkError."""
        _refuse_where_unsafe()
        self._answer({"ready": os.getpid()})
        while received := self._receive():
            request, files = received
            self._reap()
            if "exit_code" in request:
                self._answer({"exit_code": self._exit_codes.get(request["exit_code"])})
                continue
            _refuse_where_unsafe()
            child = self._fork(request, files)
            if child is not None:
                return child
        return None

    def _receive(self) -> tuple[dict[str, Any], list[int]] | None:
        """The next request with its files, None once the server is gone. Reaps while there is none."""
        self._server.settimeout(_REAP_SECONDS)
        while True:
            try:
                line, files, _, _ = socket.recv_fds(self._server, 1 << 16, _MOST_FILES)
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
        """None in the parent, which has answered; in the child: what it is to do."""
        begun, beginning = os.pipe()
        try:
            pid = os.fork()
        except OSError as error:
            _close([begun, beginning, *files])
            self._answer({"error": str(error)})
            return None
        if pid == 0:
            self._server.close()
            os.close(begun)
            os.setsid()
            os.close(beginning)
            return lambda: _become(request, files)
        # A lock passed on is held for as long as any process has its file open: none is when the pid is known.
        _close([beginning, *files])
        # They may also end its whole session, which must be there by then.
        os.read(begun, 1)
        os.close(begun)
        self._exit_codes[pid] = None
        self._answer({"pid": pid})
        return None

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while (found := os.waitpid(-1, os.WNOHANG))[0]:
                self._exit_codes[found[0]] = os.waitstatus_to_exitcode(found[1])

    def _answer(self, content: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):
            self._server.sendall(json.dumps(content).encode() + b"\n")


def _close(files: Iterable[int]) -> None:
    for file in files:
        os.close(file)


def _become(request: dict[str, Any], files: list[int]) -> int:
    """In the child: its standard files and environment, then what it is for; nothing where nobody waits for it."""
    told, standard, further = files[0], files[1:4], files[4:]
    for number, file in enumerate(standard):
        os.dup2(file, number)
        os.close(file)
    with os.fdopen(told, "rb") as pipe:
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
