"""Check that the run takes enough optimizer steps to change the model."""

from __future__ import annotations

from merlina.data.split import held_out_count
from merlina.preflight.report import CheckResult
from merlina.schemas.inspection import DataFacts
from merlina.schemas.training.config import TrainingConfig
from merlina.step_plan import StepPlan


def plan_steps(config: TrainingConfig, data: DataFacts | None, rows: int | None) -> StepPlan | None:
    """Return the step plan for `rows` rows, assuming the fraction of usable rows among those examined.

    None if the number of rows is unknown.
    """
    if data is None or not rows or not data.rows:
        return None
    pairs = round(rows * data.usable / data.rows)
    return StepPlan(config, pairs - held_out_count(pairs, config.dataset.test_size))


def check_step_count(plan: StepPlan | None) -> CheckResult:
    """Return a warning for a plan that is unlikely to change the model much."""
    if plan is None or plan.pairs == 0:
        return CheckResult(passed=None, not_checked=("steps_suffice: the number of pairs is unknown",))
    findings = tuple(plan.findings())
    return CheckResult(passed=not findings, findings=findings)
