"""The steps that a configuration plans for a number of pairs, and the learning rate of each step.

The checks before a run and the run itself use the same functions, so that both state the same plan.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from merlina.schemas.training import SchedulerType, TrainingConfig

# Fewer steps than these are few for any learning rate.
_FEW_STEPS = 10
# Adam and Lion move a weight by about the learning rate in a step. A sum below this is lost in the rounding of
# bfloat16, which resolves 1e-4 of a weight of 0.02.
_SMALL_MOVEMENT = 5e-5
_STEPS_OF_A_CYCLE = 2
_STEPS_SUMMED = 1000


@dataclass(frozen=True)
class StepPlan:
    """All optimizer steps of a run on `pairs` training pairs."""

    config: TrainingConfig
    pairs: int

    @property
    def steps_per_epoch(self) -> int:
        """The last step of an epoch takes what is left."""
        return max(1, math.ceil(self.pairs / self.config.pairs_per_step))

    @property
    def steps(self) -> int:
        return self.config.max_steps or math.ceil(self.steps_per_epoch * self.config.num_epochs)

    @property
    def warmup_steps(self) -> int:
        return math.ceil(self.steps * self.config.warmup_ratio)

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, counted from 1."""
        return self.config.learning_rate * rate_factor(self.config, step, self.steps, self.warmup_steps)

    def warnings(self) -> list[str]:
        """Return a sentence for each reason to expect little from the planned steps."""
        found = [self._few_steps(), self._short_cycles()]
        return [warning for warning in found if warning is not None]

    def _few_steps(self) -> str | None:
        stride = math.ceil(self.steps / _STEPS_SUMMED)
        movement = stride * sum(self.rate(step) for step in range(1, self.steps + 1, stride))
        # The step of plain SGD is as long as the gradient, which nobody knows beforehand.
        is_small = movement < _SMALL_MOVEMENT and self.config.optimizer_type != "sgd"
        if self.steps >= _FEW_STEPS and not is_small:
            return None
        moved = f", which move a weight by about {movement:.1g} in all" if self.config.optimizer_type != "sgd" else ""
        effect = "The model will hardly change" if is_small else "That is little to learn from"
        limit = f"max_steps {self.config.max_steps}" if self.config.max_steps else f"{self.config.num_epochs:g} epochs"
        return (
            f"Only {_counted(self.steps, 'optimizer step')} with a peak learning rate of {self.config.learning_rate:g}"
            f"{moved}: {_counted(self.pairs, 'training pair')}, {self.config.pairs_per_step} a step, {limit}. "
            f"{effect}; use more pairs or epochs, a smaller batch_size times gradient_accumulation_steps, or a higher "
            "learning_rate"
        )

    def _short_cycles(self) -> str | None:
        cycles, falling = self.config.lr_scheduler_cycles, self.steps - self.warmup_steps
        if self.config.lr_scheduler_type != "cosine_with_restarts" or falling >= _STEPS_OF_A_CYCLE * cycles:
            return None
        return (
            f"lr_scheduler_cycles: {cycles} cycles share the {falling} steps after the warm-up, fewer than "
            f"{_STEPS_OF_A_CYCLE} each, so that the learning rate does not fall within them; use fewer cycles"
        )


def rate_factor(config: TrainingConfig, step: int, steps: int, warmup_steps: int) -> float:
    """Return the share of the peak learning rate in optimizer step `step` of `steps`, counted from 1; never 0.

    Step k of w warm-up steps has k/w. Afterwards the schedules fall from 1 and would reach 0 one step after the last.
    """
    if step <= warmup_steps:
        return step / warmup_steps
    progress = min((step - 1 - warmup_steps) / max(1, steps - warmup_steps), 1.0)
    return _decay(config, config.lr_scheduler_type, progress)


def _decay(config: TrainingConfig, schedule: SchedulerType, progress: float) -> float:
    """Return the share of the peak rate, with `progress` from 0 at the first step after the warm-up to 1 after the
    last."""
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
