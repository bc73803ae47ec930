"""`python -m merlina.worker RUN_FOLDER --lock-fd N`: the entry point of a worker.

Before anything heavy is imported, the worker sets its signal handlers, writes its identity to its lock file and writes
its first event, so that from then on the server can identify and stop it, and record its death.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from setproctitle import setproctitle

from merlina.errors import StoredConfigError
from merlina.faults import FaultPoint, reach
from merlina.processes import identify
from merlina.run_folder.event_log import EventLog
from merlina.run_folder.folder import RunFolder
from merlina.schemas.events import Ended, Started
from merlina.worker.fast_exit import exit_with
from merlina.worker.imports import OPENING_NO_GPU, import_without_gc
from merlina.worker.run.stop_requests import ReceivedRequests
from merlina.worker.run.watchdog import watch

_NAMED_VERSIONS = ("merlina", "torch", "transformers", "peft")


def main(given: Sequence[str] | None = None) -> int:
    arguments = _arguments(given)
    os.umask(0o077)
    os.set_inheritable(arguments.lock_fd, False)
    folder = RunFolder(arguments.folder)
    setproctitle(f"merlina worker {folder.path.name} {folder.path}")
    # Segments that grow leave few holes between passes of different sizes, so that little more is held than is used.
    if "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:
        os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    requests = ReceivedRequests(folder.stop_file, folder.pause_file)
    _write_identity(arguments.lock_fd)
    reach(FaultPoint.START_IDENTIFIED)
    log = EventLog(folder.events_file, folder.after_seq())
    try:
        order = folder.read_order()
    except StoredConfigError as error:
        log.append(Ended(state="failed", error=error.message))
        return 1
    versions = {name: version(name) for name in _NAMED_VERSIONS}
    process = str(identify(os.getpid()))
    log.append(Started(attempt=order.attempt, pid=os.getpid(), process=process, versions=versions))
    reach(FaultPoint.START_REPORTED)

    if order.num_ranks > 1:
        # The ranks are forked after these imports, so that each has them without importing them itself.
        *_, multi_gpu = import_without_gc([*OPENING_NO_GPU, "merlina.worker.run.multi_gpu"])
        return int(multi_gpu.run_in_ranks(folder, order, log, requests, arguments.lock_fd))
    (run,) = import_without_gc(["merlina.worker.run.run"])
    watch(folder, arguments.lock_fd, log)
    return int(run.run(folder, order, log, requests))


def _arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m merlina.worker")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--lock-fd", type=int, required=True)
    return parser.parse_args(given)


def _write_identity(lock: int) -> None:
    os.ftruncate(lock, 0)
    os.pwrite(lock, str(identify(os.getpid())).encode(), 0)


if __name__ == "__main__":
    exit_with(main)
