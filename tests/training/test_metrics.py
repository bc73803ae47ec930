"""Throughput, measured with a simulated clock."""

from __future__ import annotations

import pytest

from merlina.training.loop.metrics import Throughput

pytestmark = pytest.mark.slow


def test_throughput_counts_from_the_first_step_and_leaves_evaluations_out() -> None:
    now = [100.0]
    throughput = Throughput(lambda: now[0])
    with throughput.paused():
        now[0] += 50
    now[0] += 50
    throughput.start()
    now[0] += 4
    throughput.add(300)
    with throughput.paused():
        now[0] += 1000
    throughput.start()
    now[0] += 2
    throughput.add(300)
    assert throughput.take() == pytest.approx(100)
    now[0] += 3
    throughput.add(30)
    assert throughput.take() == pytest.approx(10)
