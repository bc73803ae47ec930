"""`python -m merlina.worker.fork_server`: a process that has imported what runs need, and forks one for each.

Importing takes seconds and a fork milliseconds. multiprocessing's own fork server won't do: its children share one
environment, end with it, and tell their exit codes to nobody else.

Standard input is a socket to the server. One JSON object a line comes in, with the new process's open files beside it:
{"run": "worker" or "helper", "arguments": [...], "environment": {...}}, answered by {"pid": N}; and {"exit_code": pid},
answered by {"exit_code": code}, null while it lives. The first line out says that it is ready. It ends when its input
does; its children go on.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from setproctitle import setproctitle

from merlina.hardware.gpus import list_gpus

_MOST_FILES = 8
_REAP_SECONDS = 1.0
# bitsandbytes, which peft and the Trainer import, asks CUDA for its devices; after that no fork could use them.
_BEFORE_CUDA = ("torch", "transformers", "datasets", "accelerate", "transformers.models.auto.modeling_auto")
_EVERYTHING = (
    "merlina.worker.run",
    "merlina.worker.helper_inspection",
    "merlina.worker.helper_previews",
    "transformers.models.llama.modeling_llama",
)


def main() -> int:
    os.umask(0o077)
    setproctitle("merlina fork server")
    for module in _BEFORE_CUDA if list_gpus() else _EVERYTHING:
        importlib.import_module(module)
    unsafe = _why_not_to_fork()
    if unsafe:
        sys.stderr.write(f"No process can be forked from this one: {unsafe}\n")
        return 1
    gc.collect()
    gc.freeze()
    with socket.socket(fileno=os.dup(0)) as server:
        child = _Forks(server).serve()
    return child() if child else 0


def _why_not_to_fork() -> str | None:
    """What a child would lack: threads are not forked, and a CUDA context can't be."""
    import torch

    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return "a library has opened the GPU while it was imported"
    threads = len(list(Path("/proc/self/task").iterdir())) if Path("/proc/self/task").exists() else 1
    return f"it has {threads} threads" if threads > 1 else None


class _Forks:
    """The children by pid, with the exit code of those that have ended."""

    def __init__(self, server: socket.socket) -> None:
        self._server = server
        self._exit_codes: dict[int, int | None] = {}

    def serve(self) -> Callable[[], int] | None:
        """Until the server is gone: None; or, in each child: what it is to do."""
        self._answer({"ready": os.getpid()})
        self._server.settimeout(_REAP_SECONDS)
        while True:
            try:
                line, files, _, _ = socket.recv_fds(self._server, 1 << 16, _MOST_FILES)
            except TimeoutError:
                self._reap()
                continue
            except OSError:
                return None
            if not line:
                return None
            while not line.endswith(b"\n"):
                line += self._server.recv(1 << 16)
            request = json.loads(line)
            self._reap()
            if "exit_code" in request:
                self._answer({"exit_code": self._exit_codes.get(request["exit_code"])})
                continue
            child = self._fork(request, files)
            if child is not None:
                return child

    def _fork(self, request: dict[str, Any], files: list[int]) -> Callable[[], int] | None:
        begun, beginning = os.pipe()
        pid = os.fork()
        if pid == 0:
            self._server.close()
            os.close(begun)
            os.setsid()
            os.close(beginning)
            return lambda: _become(request, files)
        os.close(beginning)
        # Whoever has the pid may end its whole session, which must be there by then.
        os.read(begun, 1)
        os.close(begun)
        # A lock passed on is held for as long as any process has its file open.
        for file in files:
            os.close(file)
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


def _become(request: dict[str, Any], files: list[int]) -> int:
    """In the child: its open files (standard ones first) and environment, then what it is for."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    standard, further = files[:3], files[3:]
    for number, file in enumerate(standard):
        os.dup2(file, number)
    for file in standard:
        os.close(file)
    os.environ.clear()
    os.environ.update(request["environment"])
    return _ROLES[request["run"]](request["arguments"], further)


def _worker(arguments: list[str], files: list[int]) -> int:
    from merlina.worker.__main__ import main

    return main([*arguments, "--lock-fd", str(files[0])])


def _helper(_arguments: list[str], _files: list[int]) -> int:
    from merlina.worker.helper import main

    main()
    return 0


_ROLES: dict[str, Callable[[list[str], list[int]], int]] = {"worker": _worker, "helper": _helper}


if __name__ == "__main__":
    sys.exit(main())
