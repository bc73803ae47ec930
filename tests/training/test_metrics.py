"""What is reported of steps: the speed on a clock of the test's own."""

from __future__ import annotations

import pytest

from merlina.training.loop.metrics import Throughput


def test_speed_counts_from_the_first_step_and_leaves_evaluations_out() -> None:
    now = [100.0]
    speed = Throughput(lambda: now[0])
    with speed.paused():
        now[0] += 50
    now[0] += 50
    speed.start()
    now[0] += 4
    speed.add(300)
    with speed.paused():
        now[0] += 1000
    speed.start()
    now[0] += 2
    speed.add(300)
    assert speed.take() == pytest.approx(100)
    now[0] += 3
    speed.add(30)
    assert speed.take() == pytest.approx(10)
