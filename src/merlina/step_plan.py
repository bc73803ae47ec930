"""Number of optimizer steps and learning rate of each step, for preflight checks and training alike."""

from __future__ import annotations

import math
from dataclasses import dataclass

from merlina.errors import Finding
from merlina.schemas.training.config import TrainingConfig
from merlina.schemas.training.steps import SchedulerType

# Fewer steps are too few at any learning rate.
_FEW_STEPS = 10
# Adam and Lion move a weight by about the learning rate in each step. bfloat16 has 8 bits of precision: near 0.02, a
# typical weight, its values are 1e-4 apart, so that a total movement below half of that is lost in rounding.
_SMALL_MOVEMENT = 5e-5
_MIN_STEPS_PER_CYCLE = 2
_STEPS_SUMMED = 1000


@dataclass(frozen=True)
class StepPlan:
    """The optimizer steps of a run on `pairs` training pairs."""

    config: TrainingConfig
    pairs: int

    @property
    def steps_per_epoch(self) -> int:
        """Number of optimizer steps in an epoch, the last of which may have fewer pairs."""
        return max(1, math.ceil(self.pairs / self.config.pairs_per_step))

    @property
    def steps(self) -> int:
        return self.config.max_steps or math.ceil(self.steps_per_epoch * self.config.num_epochs)

    @property
    def warmup_steps(self) -> int:
        return math.ceil(self.steps * self.config.warmup_ratio)

    def rate(self, step: int) -> float:
        """Return the learning rate of optimizer step `step`, counted from 1."""
        return self.config.learning_rate * rate_factor(self.config, step, self.steps, self.warmup_steps)

    def findings(self) -> list[Finding]:
        """Return a warning for each reason why the planned steps will change the model little."""
        found = [self._few_steps(), self._short_cycles()]
        return [finding for finding in found if finding is not None]

    def _few_steps(self) -> Finding | None:
        stride = math.ceil(self.steps / _STEPS_SUMMED)
        movement = stride * sum(self.rate(step) for step in range(1, self.steps + 1, stride))
        # An SGD step is proportional to the gradient, which is unknown before the run.
        is_small = movement < _SMALL_MOVEMENT and self.config.optimizer_type != "sgd"
        if self.steps >= _FEW_STEPS and not is_small:
            return None
        moved = f", moving a weight by about {movement:.1g} in total" if self.config.optimizer_type != "sgd" else ""
        effect = "The model will hardly change" if is_small else "That may be too few to learn from"
        limit = f"max_steps {self.config.max_steps}" if self.config.max_steps else f"{self.config.num_epochs:g} epochs"
        message = (
            f"Only {_counted(self.steps, 'optimizer step')} with a peak learning rate of {self.config.learning_rate:g}"
            f"{moved}: {_counted(self.pairs, 'training pair')}, {self.config.pairs_per_step} per step, {limit}. "
            f"{effect}; use more pairs or epochs, a smaller batch_size or gradient_accumulation_steps, or a higher "
            "learning_rate"
        )
        return Finding(message, severity="warning")

    def _short_cycles(self) -> Finding | None:
        cycles, falling = self.config.lr_scheduler_cycles, self.steps - self.warmup_steps
        if self.config.lr_scheduler_type != "cosine_with_restarts" or falling >= _MIN_STEPS_PER_CYCLE * cycles:
            return None
        message = (
            f"{cycles} cycles in {falling} steps after the warm-up leave fewer than "
            f"{_MIN_STEPS_PER_CYCLE} steps per cycle, so the learning rate never decays; use fewer cycles"
        )
        return Finding(message, "lr_scheduler_cycles", "warning")


def rate_factor(config: TrainingConfig, step: int, steps: int, warmup_steps: int) -> float:
    """Return the fraction of the peak learning rate at optimizer step `step` (from 1) of `steps`; never 0.

    Step k of w warm-up steps has k/w. Afterwards the schedules decay from 1 and would reach 0 one step after the last.
    """
    if step <= warmup_steps:
        return step / warmup_steps
    progress = min((step - 1 - warmup_steps) / max(1, steps - warmup_steps), 1.0)
    return _decay(config, config.lr_scheduler_type, progress)


def _decay(config: TrainingConfig, schedule: SchedulerType, progress: float) -> float:
    """Return the fraction of the peak learning rate; `progress` runs from 0, right after the warm-up, to 1."""
    if schedule == "linear":
        return 1 - progress
    if schedule == "polynomial":
        return float((1 - progress) ** config.lr_scheduler_power)
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * progress))
    if schedule == "cosine_with_restarts":
        return 0.5 * (1 + math.cos(math.pi * (config.lr_scheduler_cycles * progress % 1)))
    return 1.0


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
