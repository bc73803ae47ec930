"""Identities of processes, independent of the system clock: boot id, process id and start time in clock ticks."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import psutil

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_DEAD_STATES = ("Z", "X", "x")
# Start times in epoch seconds vary when the clock is adjusted.
_START_TIME_TOLERANCE_SECONDS = 2.0


@dataclass(frozen=True)
class ProcessId:
    """The identity of one process of one boot of a machine.

    A process id alone is reused after the process has ended, and a start time in epoch seconds changes when the clock
    is set. `start_ticks` counts from the boot that `boot_id` identifies.
    """

    pid: int
    boot_id: str
    start_ticks: int

    def __str__(self) -> str:
        return f"{self.pid} {self.boot_id} {self.start_ticks}"

    @staticmethod
    def parse(text: str) -> ProcessId | None:
        """Parse the result of `str`; return None for any other string.

        Earlier versions wrote a process id and a start time in epoch seconds, which is accepted for a process that
        still runs.
        """
        with contextlib.suppress(ValueError):
            match text.split():
                case [pid, boot_id, ticks]:
                    return ProcessId(int(pid), boot_id, int(ticks))
                case [pid, start_time]:
                    return _identify_started(int(pid), float(start_time))
        return None

    def is_alive(self) -> bool:
        """Return whether the process still runs. A zombie does not."""
        return identify(self.pid) == self


def identify(pid: int) -> ProcessId | None:
    """Return the identity of the process that runs as `pid` now; None if there is none or only a zombie."""
    ticks = _linux_start_ticks(pid) if sys.platform == "linux" else _other_start_ticks(pid)
    return None if ticks is None else ProcessId(pid, _boot_id(), ticks)


def _identify_started(pid: int, start_time: float) -> ProcessId | None:
    with contextlib.suppress(psutil.Error):
        if abs(psutil.Process(pid).create_time() - start_time) < _START_TIME_TOLERANCE_SECONDS:
            return identify(pid)
    return None


@cache
def _boot_id() -> str:
    with contextlib.suppress(OSError):
        return _BOOT_ID.read_text().strip() or "-"
    return "-"


def _linux_start_ticks(pid: int) -> int | None:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    # The second field is the program's name in parentheses, which may contain any text; the state follows it.
    state, *fields = stat.rpartition(")")[2].split()
    return None if state in _DEAD_STATES else int(fields[18])


def _other_start_ticks(pid: int) -> int | None:
    """Return hundredths of a second since the epoch: macOS records them once, at the start of the process."""
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        if process.status() != psutil.STATUS_ZOMBIE:
            return round(process.create_time() * 100)
    return None
