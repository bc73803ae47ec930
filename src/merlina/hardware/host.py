"""Memory and disk of the machine, and processes that the kernel killed for lack of memory."""

from __future__ import annotations

import ctypes
import shutil
import signal
import sys
from pathlib import Path

import psutil


def available_memory() -> int:
    """Return the RAM that a new process can use without swapping, in bytes."""
    return int(psutil.virtual_memory().available)


def release_freed_memory() -> None:
    """Return freed memory to the system (see training/loop/glibc_allocator). No effect without glibc."""
    if not sys.platform.startswith("linux"):
        return
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def total_memory() -> int:
    """Return the RAM of the machine, in bytes."""
    return int(psutil.virtual_memory().total)


def disk_space(path: Path) -> tuple[int, int]:
    """Return the total and free bytes of the disk with `path`, which need not exist yet."""
    usage = shutil.disk_usage(existing_parent(path))
    return usage.total, usage.free


def resident_memory(pid: int) -> int:
    """Return the RAM in use by a process, in bytes; 0 if it does not exist."""
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0


def free_disk(path: Path) -> int:
    """Return the free bytes of the disk with `path`, which need not exist yet."""
    return disk_space(path)[1]


def existing_parent(path: Path) -> Path:
    """Return the path itself, or its nearest parent that exists."""
    return next(folder for folder in (path, *path.parents) if folder.exists())


def oom_kills() -> int:
    """Return the number of processes that the kernel has killed for lack of memory since boot; 0 if unknown."""
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)


def describe_signal(number: int, *, out_of_memory: bool) -> str:
    """Return a predicate that describes how a signal ended a process, to follow its name in a message."""
    name = signal.Signals(number).name
    if number != signal.SIGKILL:
        return f"was ended by signal {number} ({name})"
    if out_of_memory:
        return (
            "was killed by the system because memory ran out (signal 9, SIGKILL). "
            "Reduce max_length, or set gradient_checkpointing or use_4bit"
        )
    return "was killed from outside (signal 9, SIGKILL); the system reports no lack of memory"
