from __future__ import annotations

import math
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from merlina.errors import TrainingError
from merlina.training.loop.alarms import Alarms, check_losses

pytestmark = pytest.mark.slow


class Warnings(list[str]):
    def __call__(self, level: str, message: str) -> None:
        assert level == "warning"
        self.append(message)


def metrics(**changes: float) -> dict[str, float]:
    return {"logps_chosen": -1.0, "reward_margin": 0.1, "reward_accuracy": 0.9, **changes}


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_names_its_step_and_rows(bad: float) -> None:
    check_losses(3, [4, 7], [0.5, 1e30])
    with pytest.raises(TrainingError, match=rf"became {bad} in step 3, from row 7: the training has diverged"):
        check_losses(3, [4, 7], [0.5, bad])
    with pytest.raises(TrainingError, match=r"from 9 of the 9 pairs, among them rows 0, 1, 2, 3, 4:"):
        check_losses(3, list(range(9)), [bad] * 9)


def test_an_exploded_loss_ends_the_run_and_is_reported() -> None:
    alarms, draw = Alarms(Warnings(), has_evaluations=False), random.Random(0)
    for step in range(1, 41):
        alarms.step(step, 2 + draw.random(), {})
    for step in range(41, 45):
        alarms.step(step, 50.0, {})
    with pytest.raises(
        TrainingError, match=r"exploded: 50, 50, 50, 50, 51 in the 5 steps up to 45; its median was 2\."
    ):
        alarms.step(45, 51.0, {})


@given(
    level=st.floats(0.01, 30),
    noise=st.floats(0, 1),
    slope=st.floats(-0.01, 0.01),
    outliers=st.sets(st.integers(0, 199), max_size=40),
    seed=st.integers(0, 1000),
)
def test_no_healthy_run_is_ended(level: float, noise: float, slope: float, outliers: set[int], seed: int) -> None:
    """The loss is noisy, drifts slowly and has outliers, up to four of them in a row."""
    alarms, draw = Alarms(Warnings(), has_evaluations=False), random.Random(seed)
    alone = {step for step in outliers if not {step - 1, step - 2, step - 3, step - 4} <= outliers}
    for step in range(200):
        loss = level * (1 + slope * step / 10) + noise * level * draw.gauss(0, 1)
        alarms.step(step, loss * 100 if step in alone else loss, {})


def test_each_warning_is_given_once_until_its_condition_ends() -> None:
    warnings = Warnings()
    alarms = Alarms(warnings, has_evaluations=False)
    for step in range(1, 200):
        alarms.step(step, 1.0, metrics(reward_accuracy=0.3 if 60 < step < 160 else 0.8))
    assert len(warnings) == 1
    assert "the model prefers the rejected answer in" in warnings[0]
    for step in range(200, 300):
        alarms.step(step, 1.0, metrics(reward_accuracy=0.3))
    assert len(warnings) == 2


def test_chosen_answers_that_fall_while_the_margin_rises_cause_a_warning() -> None:
    warnings = Warnings()
    alarms = Alarms(warnings, has_evaluations=True)
    for step in range(1, 150):
        alarms.step(step, 1.0, metrics(logps_chosen=-1 - step / 100, reward_margin=0.1 + step / 100))
    assert len(warnings) == 1
    assert "the chosen answers become less likely (-1.130 to" in warnings[0]
    no_warnings = Warnings()
    alarms = Alarms(no_warnings, has_evaluations=True)
    for step in range(1, 150):
        alarms.step(step, 1.0, metrics(logps_chosen=-1 + step / 300, reward_margin=0.1 + step / 100))
    assert no_warnings == []


@pytest.mark.parametrize(
    ("losses", "count"), [([3, 2, 2.1, 2.2, 2.3], 1), ([3, 2, 2.1, 2.2, 2.1, 2.3], 0), ([3, 2, 2.1, 2.2, 2.3, 2.4], 1)]
)
def test_evaluations_that_get_worse_in_a_row_cause_a_warning(losses: list[float], count: int) -> None:
    warnings = Warnings()
    alarms = Alarms(warnings, has_evaluations=True)
    for step, loss in enumerate(losses):
        alarms.evaluation(step, {"eval_loss": loss, "eval_reward_accuracy": 0.9})
    assert len(warnings) == count
    assert all("risen 3 times in a row (2.0000, 2.1000, 2.2000, 2.3000)" in message for message in warnings)


def test_held_out_accuracy_counts_if_there_is_an_evaluation() -> None:
    warnings = Warnings()
    alarms = Alarms(warnings, has_evaluations=True)
    for step in range(1, 100):
        alarms.step(step, 1.0, metrics(reward_accuracy=0.2))
    assert warnings == []
    kept: Any = {"eval_loss": 1.0, "eval_reward_accuracy": 0.25}
    for step in (0, 50, 100):
        alarms.evaluation(step, kept)
    assert len(warnings) == 1
    assert "in 75% of the pairs of the evaluation" in warnings[0]
