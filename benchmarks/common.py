"""Shared by the benchmarks: the tests' real server and tiny model, percentiles, and resources of processes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.harness import Server, add_running_job, pairs_file, training_config, until
from tests.tiny import build_tiny_model

__all__ = [
    "Server", "add_running_job", "build_tiny_model", "cpu_seconds", "megabytes", "pairs_file", "percentile",
    "process_of", "server_with_spare_process", "training_config", "until",
]  # fmt: skip


def server_with_spare_process(root: Path, **settings: str) -> Server:
    """Return a server that has a spare process, as servers have by default and those of tests do not."""
    return Server(root, {"SPARE_PROCESSES": "true", **settings})


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value that `share` (0 to 1) of all values do not exceed."""
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def process_of(server: Server) -> psutil.Process:
    assert server.process is not None
    return psutil.Process(server.process.pid)


def cpu_seconds(process: psutil.Process) -> float:
    """Return the processor time used so far by all threads, in seconds."""
    times = process.cpu_times()
    return float(times.user + times.system)


def megabytes(process: psutil.Process) -> float:
    """Return the resident memory."""
    return float(process.memory_info().rss) / 1e6
