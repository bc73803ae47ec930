"""Limits of memory and CPU time for untrusted work."""

from __future__ import annotations

import contextlib
import resource
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

from merlina.domain.units import MIB

# The signal repeats: one that arrives where Python ignores exceptions, as in a destructor, is lost.
_REPEAT_SECONDS = 0.5


class CpuTimeExceededError(Exception):
    """The work exceeded its limit of CPU time."""


@contextlib.contextmanager
def memory_headroom(mebibytes: float) -> Iterator[None]:
    """Let this process allocate at most this many MiB in addition; a larger allocation raises MemoryError.

    Linux only; elsewhere the work is not limited. Libraries that cannot report a failed allocation end the process.
    """
    if sys.platform != "linux":
        yield
        return
    before, hard = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = _data_bytes() + round(mebibytes * MIB)
    limits = [limit for limit in (wanted, before, hard) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_DATA, (min(limits), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (before, hard))


@contextlib.contextmanager
def cpu_seconds(seconds: float) -> Iterator[None]:
    """Raise CpuTimeExceededError once this process has used this much CPU time; waiting for a CPU does not count.

    Signals reach the main thread only: in another thread the work is not limited. A single operation of C code is not
    interrupted.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    running = True

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        if running:
            raise CpuTimeExceededError

    before = signal.signal(signal.SIGPROF, on_signal)
    signal.setitimer(signal.ITIMER_PROF, seconds, _REPEAT_SECONDS)
    try:
        yield
    finally:
        running = False
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def _data_bytes() -> int:
    """Return the bytes that the kernel counts against RLIMIT_DATA, including the stack."""
    # Not by a Path, which takes longer than the kernel: every rendering of a chat template asks.
    with open("/proc/self/statm", "rb") as statm:
        return int(statm.read().split()[5]) * resource.getpagesize()
