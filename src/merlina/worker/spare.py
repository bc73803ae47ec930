"""`python -m merlina.worker.spare`: a process that completes its imports in advance and waits for its assignment.

Importing takes seconds. A spare process spends them in advance, at low priority. Meanwhile it waits on its standard
input, a socket that connects it with the server, for one line of JSON, with the open files beside it (SCM_RIGHTS):
standard input, output and error, then a worker's lock.

    {"role": "worker", "helper" or "chat", "arguments": [...], "environment": {...}}

From then on it is that process and no longer needs the server. The lock is held from the moment at which the server
sends it, first in the socket and then here, so that it alone decides whether a run has a worker. If the server dies or
closes the socket before the line is complete, this process ends at once without effects.

Until its assignment arrives it has no token and does not open a GPU, so that CUDA_VISIBLE_DEVICES takes effect: it
neither queries NVML nor imports bitsandbytes, which opens every GPU that it sees, nor peft, which imports bitsandbytes.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
from collections.abc import Callable
from typing import Any

from setproctitle import setproctitle

from merlina.worker.fast_exit import exit_with
from merlina.worker.imports import OPENING_NO_GPU, import_without_gc

_MAX_FILES = 8
_NICENESS = 5
_ROLE_MODULES = ("merlina.worker.__main__", "merlina.worker.helper.process", "merlina.worker.chat.process")


def main() -> int:
    setproctitle("merlina spare importing")
    assigned = threading.Event()
    imports = threading.Thread(target=_import_until, args=(assigned,), name="imports", daemon=True)
    imports.start()
    with socket.socket(fileno=os.dup(0)) as server:
        assignment, files = _receive_assignment(server)
    assigned.set()
    imports.join()
    for number, file in enumerate(files[:3]):
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(assignment["environment"])
    return _ROLES[assignment["role"]](assignment["arguments"], files[3:])


def _import_until(assigned: threading.Event) -> None:
    if sys.platform == "linux":
        # Only this thread, since a process may not raise its priority again when its assignment arrives.
        thread = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + _NICENESS)
    # The rest of a run takes half a second to import. After an assignment, the module in progress is completed at low
    # priority and the others are imported by the role, so none should be slow.
    for name in (*_ROLE_MODULES, *OPENING_NO_GPU):
        if assigned.is_set():
            return
        import_without_gc([name])
    setproctitle("merlina spare")


def _receive_assignment(server: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """Wait for the assignment and its files. Without an assignment, end the process at once, even during an import."""
    line, files = b"", list[int]()
    while not line.endswith(b"\n"):
        try:
            chunk, received, _, _ = socket.recv_fds(server, 1 << 16, _MAX_FILES)
        except OSError:
            chunk, received = b"", []
        if not chunk:
            os._exit(0)
        line += chunk
        files += received
    return json.loads(line), files


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
    exit_with(main)
