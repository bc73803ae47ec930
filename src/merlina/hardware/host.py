"""The machine around the GPUs: memory, disk, and what the kernel did about memory."""

from __future__ import annotations

import ctypes
import shutil
import signal
import sys
from pathlib import Path

import psutil


def available_memory() -> int:
    """RAM a new process could use without swapping, in bytes."""
    return int(psutil.virtual_memory().available)


def release_freed_memory() -> None:
    """Lets go of what this process keeps for its next blocks (training/host_memory). Does nothing without glibc."""
    if not sys.platform.startswith("linux"):
        return
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def total_memory() -> int:
    """RAM of the machine, in bytes."""
    return int(psutil.virtual_memory().total)


def disk_space(path: Path) -> tuple[int, int]:
    """Total and free bytes of the disk that holds `path`, or would hold it."""
    usage = shutil.disk_usage(existing_parent(path))
    return usage.total, usage.free


def resident_memory(pid: int) -> int:
    """RAM a process holds, in bytes; 0 where there is none by that number."""
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0


def free_disk(path: Path) -> int:
    """Free bytes on the disk that holds `path`, or would hold it."""
    return disk_space(path)[1]


def existing_parent(path: Path) -> Path:
    """The path itself, or the nearest folder above it that exists."""
    return next(folder for folder in (path, *path.parents) if folder.exists())


def oom_kills() -> int:
    """Processes the kernel has killed for want of memory since it started; 0 where it doesn't say."""
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)


def describe_signal(number: int, *, out_of_memory: bool) -> str:
    """What became of a process that a signal ended, to be read after its name."""
    name = signal.Signals(number).name
    if number != signal.SIGKILL:
        return f"was ended by signal {number} ({name})"
    if out_of_memory:
        return (
            "was killed by the system because memory ran out (signal 9, SIGKILL). "
            "A smaller max_length, gradient_checkpointing or use_4bit need less"
        )
    return "was killed from outside (signal 9, SIGKILL), not by running out of memory as far as the system tells"
