"""Which of a run's models is kept, and whether it ends before its last step: by what its evaluations say."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState

from merlina import checkpoints
from merlina.schemas.training import TrainingConfig
from merlina.training.alarms import Say

_HIGHER_IS_BETTER = {"eval_reward_margin"}


class Endings(TrainerCallback):  # type: ignore[misc]
    """Has the best evaluated model written as a checkpoint, and ends a run that gets no better.

    The best so far is part of the Trainer's state and comes back with a resume; from it follows how many evaluations
    went by without a better one. Its checkpoint is kept as long as a checkpoint that names it.
    """

    def __init__(self, config: TrainingConfig, folder: Path, say: Say) -> None:
        self._measure = config.load_best_at_end or "eval_loss"
        self._keeps_best = config.load_best_at_end is not None
        self._patience = config.early_stopping_patience
        self._folder = folder
        self._say = say
        self._without = 0
        self.ended_early = False

    def on_train_begin(self, args: Any, state: TrainerState, _control: TrainerControl, **_: Any) -> None:
        if self._keeps_best and state.best_global_step:
            self._forget_lost_best(state)
        self._without = _evaluations_since_best(state, was_evaluated=not args.eval_on_start)

    def on_evaluate(
        self, _args: Any, state: TrainerState, control: TrainerControl, metrics: dict[str, float], **_: Any
    ) -> TrainerControl:
        if state.global_step == 0 or self._measure not in metrics:
            return control
        if self._is_better(metrics[self._measure], state.best_metric):
            self._without = 0
            state.best_metric, state.best_global_step = metrics[self._measure], state.global_step
            if self._keeps_best:
                control.should_save = True
            return control
        self._without += 1
        if self._patience is not None and self._without >= self._patience and state.global_step < state.max_steps:
            self.ended_early = True
            control.should_training_stop = True
            self._say(
                "info",
                f"Ended at step {state.global_step} of {state.max_steps}: {self._measure} was best at step "
                f"{state.best_global_step} ({state.best_metric:.4f}) and no better in {self._without} evaluations "
                f"since (now {metrics[self._measure]:.4f}; early_stopping_patience {self._patience})",
            )
        return control

    def end_as_before(self, state: TrainerState, *, was_evaluated: bool) -> bool:
        """Whether a run resumed in this state had ended early at its step, and therefore takes no further one.

        `was_evaluated` is false where the evaluation of that step is due but was not made.
        """
        without = _evaluations_since_best(state, was_evaluated=was_evaluated)
        if self._patience is None or without < self._patience or state.global_step >= state.max_steps:
            return False
        self.ended_early = True
        self._say(
            "info",
            f"The run had ended at step {state.global_step} of {state.max_steps}: {self._measure} was best at step "
            f"{state.best_global_step} ({state.best_metric:.4f}) and no better in {without} evaluations since "
            f"(early_stopping_patience {self._patience})",
        )
        return True

    def _forget_lost_best(self, state: TrainerState) -> None:
        lost = checkpoints.examine(checkpoints.path_of(self._folder, state.best_global_step))
        if lost is None:
            return
        self._say(
            "warning",
            f"{self._measure} was best at step {state.best_global_step} ({state.best_metric:.4f}), but that model is "
            f"lost ({lost}); the best of the evaluations to come is kept",
        )
        state.best_metric, state.best_global_step = None, None

    def _is_better(self, value: float, best: float | None) -> bool:
        if not math.isfinite(value):
            return False
        if best is None or not math.isfinite(best):
            return True
        return value > best if self._measure in _HIGHER_IS_BETTER else value < best


def _evaluations_since_best(state: TrainerState, *, was_evaluated: bool) -> int:
    """How many evaluations up to the state's step were no better than the best one; 0 where there is no best one."""
    if not state.best_global_step or not state.eval_steps:
        return 0
    made = state.global_step // state.eval_steps - (not was_evaluated)
    return int(made - state.best_global_step // state.eval_steps)
