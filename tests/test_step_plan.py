"""The planned steps and their learning rates, compared with transformers' schedules and manual results."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, get_args

import pytest
from pydantic import ValidationError

from merlina.schemas.training.config import TrainingConfig
from merlina.schemas.training.steps import SchedulerType
from merlina.step_plan import StepPlan

DATASET = {"source": {"source_type": "huggingface", "repo_id": "org/set"}}


def plan(pairs: int = 160, **changes: Any) -> StepPlan:
    given = {"base_model": "m", "output_name": "x", "dataset": DATASET, "num_epochs": 1, "learning_rate": 1e-3}
    return StepPlan(TrainingConfig.model_validate({**given, **changes}), pairs)


def rates(made: StepPlan) -> list[float]:
    return [made.rate(step) / made.config.learning_rate for step in range(1, made.steps + 1)]


@pytest.mark.parametrize("schedule", get_args(SchedulerType))
@pytest.mark.parametrize(("pairs", "warmup_ratio"), [(16, 0.05), (16, 0.0), (160, 0.3), (1600, 0.05), (32, 0.99)])
def test_no_step_of_any_schedule_has_a_rate_of_zero(schedule: str, pairs: int, warmup_ratio: float) -> None:
    made = plan(pairs, lr_scheduler_type=schedule, warmup_ratio=warmup_ratio)
    found = rates(made)
    warmup = made.warmup_steps
    assert len(found) == pairs // 16
    assert found[:warmup] == [pytest.approx(step / warmup) for step in range(1, warmup + 1)]
    assert max(found) == 1
    assert min(found) > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("schedule", "name", "given"),
    [
        ("linear", "get_linear_schedule_with_warmup", {}),
        ("cosine", "get_cosine_schedule_with_warmup", {}),
        ("constant", "get_constant_schedule_with_warmup", {}),
        ("constant_with_warmup", "get_constant_schedule_with_warmup", {}),
        ("cosine_with_restarts", "get_cosine_with_hard_restarts_schedule_with_warmup", {"num_cycles": 3}),
        ("polynomial", "get_polynomial_decay_schedule_with_warmup", {"power": 3.0, "lr_end": 0.0}),
    ],
)
def test_after_the_warmup_the_schedules_are_transformers(schedule: str, name: str, given: dict[str, float]) -> None:
    import torch
    import transformers

    made = plan(
        640, lr_scheduler_type=schedule, warmup_ratio=0.2, lr_scheduler_cycles=3, lr_scheduler_power=3.0,
        learning_rate=5e-8,
    )  # fmt: skip
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=5e-8)
    if not schedule.startswith("constant"):
        given = {**given, "num_training_steps": 40}
    scheduler = getattr(transformers, name)(optimizer, num_warmup_steps=8, **given)
    theirs = []
    for _ in range(40):
        theirs.append(scheduler.get_last_lr()[0] / 5e-8)
        optimizer.step()
        scheduler.step()
    assert made.warmup_steps == 8
    assert rates(made)[8:] == pytest.approx(theirs[8:])


def test_every_choice_of_a_schedule_has_rates_of_its_own() -> None:
    courses = {name: rates(plan(640, lr_scheduler_type=name)) for name in get_args(SchedulerType)}
    assert courses["constant"] == courses["constant_with_warmup"]
    del courses["constant"]
    assert len({tuple(course) for course in courses.values()}) == len(courses) == 5
    more = rates(plan(640, lr_scheduler_type="cosine_with_restarts", lr_scheduler_cycles=5))
    assert sum(later > earlier for earlier, later in pairwise(more)) == 4 + 1  # warm-up of 2 steps
    assert rates(plan(640, lr_scheduler_type="polynomial", lr_scheduler_power=1.0)) == pytest.approx(courses["linear"])


def test_steps_are_counted_as_the_run_takes_them() -> None:
    assert plan(17, batch_size=10, gradient_accumulation_steps=1, num_epochs=10).steps == 20
    assert plan(100, batch_size=10, gradient_accumulation_steps=1, num_epochs=2.5).steps == 25
    assert plan(100, max_steps=7).steps == 7


@pytest.mark.parametrize(
    ("pairs", "changes", "expected"),
    [
        (12, {"learning_rate": 5e-6}, ["Only 1 optimizer step ", "of 5e-06", "about 5e-06", "12 training pairs, 16"]),
        (12, {}, ["Only 1 optimizer step ", "about 0.001 in total", "That may be too few to learn from"]),
        (10_000, {"max_steps": 3}, ["Only 3 optimizer steps ", "10,000 training pairs", "max_steps 3"]),
        (
            160,
            {"learning_rate": 5e-6, "num_epochs": 1.5},
            ["Only 15 optimizer steps", "will hardly change", "1.5 epoc"],
        ),
        (160, {"num_epochs": 1.5}, None),
        (1600, {"learning_rate": 5e-6}, None),
        (1_000_000, {"learning_rate": 1e-9, "optimizer_type": "sgd"}, None),
        (1_000_000, {"learning_rate": 1e-10}, ["62,500 optimizer steps", "about 3e-06 in total"]),
        (24, {"optimizer_type": "sgd"}, ["Only 2 optimizer steps with a peak learning rate of 0.001: 24 training"]),
    ],
)
def test_a_plan_that_would_hardly_train_is_a_warning_with_its_numbers(
    pairs: int, changes: dict[str, Any], expected: list[str] | None
) -> None:
    found = [str(finding) for finding in plan(pairs, **changes).findings()]
    assert len(found) == (expected is not None)
    for part in expected or ():
        assert part in found[0]


def test_cycles_too_short_to_fall_are_a_warning() -> None:
    short = plan(320, lr_scheduler_type="cosine_with_restarts", lr_scheduler_cycles=10)
    assert list(map(str, short.findings())) == [
        "lr_scheduler_cycles: 10 cycles in 19 steps after the warm-up leave fewer than 2 steps per cycle, so the "
        "learning rate never decays; use fewer cycles"
    ]
    with pytest.raises(ValidationError):
        plan(lr_scheduler_cycles=1)
