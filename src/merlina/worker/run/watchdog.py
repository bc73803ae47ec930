"""The watchdog of a worker, which ends it if its run folder, lock or event log is removed or replaced.

Without them the server can neither observe nor stop the worker, and would start the next job beside it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from merlina.processes import identify
from merlina.run_folder.event_log import EventLog
from merlina.run_folder.folder import DETACHED_EXIT_CODE, RunFolder
from merlina.schemas.events import Ended

_CHECK_SECONDS = 0.5
_LOCK_ATTEMPTS = 20


def watch(folder: RunFolder, lock: int, log: EventLog, end_others: Callable[[], None] = lambda: None) -> None:
    """Start the watchdog in a thread, which ends this process without waiting for the other threads.

    `end_others` ends further processes that write to the log.
    """
    arguments = (folder, lock, log, end_others)
    threading.Thread(target=_watch, args=arguments, name="watchdog", daemon=True).start()


def _watch(folder: RunFolder, lock: int, log: EventLog, end_others: Callable[[], None]) -> None:
    previous = None
    while True:
        time.sleep(_CHECK_SECONDS)
        lost = _describe_missing(folder, lock, log)
        # Confirmed by a second check: on network file systems, an existing file may be missing for a moment.
        if lost is not None and lost == previous:
            log.block_appends()
            end_others()
            _end(folder, log, f"The run ended because {lost} while it was running")
        previous = lost


def _describe_missing(folder: RunFolder, lock: int, log: EventLog) -> str | None:
    """Return what was removed or replaced, as the rest of a sentence after "because"; None if nothing was."""
    if not folder.path.is_dir():
        return f"its run folder {folder.path} was removed"
    for path, descriptor, name in ((folder.events_file, log.descriptor, "event log"), (folder.lock_file, lock, "lock")):
        if not _is_at(path, descriptor):
            return f"its {name} {path} was removed or replaced"
    return None


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True  # The file cannot be examined now; it may still exist.


def _end(folder: RunFolder, log: EventLog, reason: str) -> None:
    with contextlib.suppress(OSError):
        sys.stderr.write(f"{reason}\n")
        sys.stderr.flush()
    with contextlib.suppress(OSError):
        if _is_at(folder.events_file, log.descriptor) and _take_lock(folder):
            EventLog(folder.events_file).append(Ended(state="failed", error=reason))
    os._exit(DETACHED_EXIT_CODE)


def _take_lock(folder: RunFolder) -> bool:
    """Lock the current lock file, so that no other process writes to the log. The lock ends with this process."""
    lock = os.open(folder.lock_file, os.O_RDWR | os.O_CREAT, 0o600)
    for _ in range(_LOCK_ATTEMPTS):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.05)  # The server may be testing whether it is held.
            continue
        os.pwrite(lock, str(identify(os.getpid())).encode(), 0)
        return True
    return False
