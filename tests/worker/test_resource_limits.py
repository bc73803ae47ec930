from __future__ import annotations

import threading
import time

import pytest

from merlina.worker.resource_limits import CpuTimeExceededError, cpu_seconds, memory_headroom


def test_work_that_computes_too_long_is_interrupted_and_later_work_is_not() -> None:
    with pytest.raises(CpuTimeExceededError), cpu_seconds(0.1):
        compute(60)
    compute(0.7)


def compute(seconds: float) -> None:
    began = time.process_time()
    while time.process_time() - began < seconds:
        pass


def test_waiting_does_not_count() -> None:
    with cpu_seconds(0.1):
        threading.Event().wait(0.3)


def test_memory_above_the_headroom_is_refused_and_freed() -> None:
    with pytest.raises(MemoryError), memory_headroom(64):
        bytearray(256 * 1024**2)
    assert len(bytearray(256 * 1024**2)) == 256 * 1024**2
    with memory_headroom(64):
        assert len(bytearray(16 * 1024**2)) == 16 * 1024**2
