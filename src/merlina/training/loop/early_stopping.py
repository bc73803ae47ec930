"""Which of a run's models is kept, and whether it ends before its last step: by what its evaluations say."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState

from merlina import checkpoints
from merlina.schemas.training import TrainingConfig
from merlina.training.loop.alarms import Notify

_HIGHER_IS_BETTER = {"eval_reward_margin"}


class EarlyStopping(TrainerCallback):  # type: ignore[misc]
    """Has the best evaluated model written as a checkpoint, and ends a run that gets no better.

    The best so far is part of the Trainer's state and comes back with a resume; from it follows how many evaluations
    went by without a better one. Its checkpoint is kept as long as a checkpoint that names it.
    """

    def __init__(self, config: TrainingConfig, folder: Path, say: Notify) -> None:
        self._measure = config.load_best_at_end or "eval_loss"
        self._keeps_best = config.load_best_at_end is not None
        self._patience = config.early_stopping_patience
        self._folder = folder
        self._say = say
        self._recalled: float | None = None
        self.ended_early = False

    def recall(self, evaluation: Mapping[str, float]) -> None:
        """Take over what was measured at the step that training continues after: its checkpoint may not know of it."""
        self._recalled = evaluation.get(self._measure)

    def on_train_begin(self, _args: Any, state: TrainerState, _control: TrainerControl, **_: Any) -> None:
        self._apply_recalled(state)
        if self._keeps_best and state.best_global_step:
            self._forget_lost_best(state)

    def on_evaluate(
        self, _args: Any, state: TrainerState, control: TrainerControl, metrics: dict[str, float], **_: Any
    ) -> TrainerControl:
        if state.global_step == 0 or self._measure not in metrics:
            return control
        if self._is_better(metrics[self._measure], state.best_metric):
            state.best_metric, state.best_global_step = metrics[self._measure], state.global_step
            if self._keeps_best:
                control.should_save = True
            return control
        if self._is_exhausted(state):
            self.ended_early = True
            control.should_training_stop = True
            self._say(
                "info",
                f"Ended at step {state.global_step} of {state.max_steps}: {self._since_best(state)} "
                f"(now {metrics[self._measure]:.4f}; early_stopping_patience {self._patience})",
            )
        return control

    def had_ended_early(self, state: TrainerState) -> bool:
        """Whether a run resumed in this state had ended early at its step, and therefore takes no further one."""
        self._apply_recalled(state)
        if not self._is_exhausted(state):
            return False
        self.ended_early = True
        self._say(
            "info",
            f"The run had ended at step {state.global_step} of {state.max_steps}: {self._since_best(state)} "
            f"(early_stopping_patience {self._patience})",
        )
        return True

    def _apply_recalled(self, state: TrainerState) -> None:
        if self._recalled is not None and self._is_better(self._recalled, state.best_metric):
            state.best_metric, state.best_global_step = self._recalled, state.global_step

    def _is_exhausted(self, state: TrainerState) -> bool:
        if self._patience is None or state.global_step >= state.max_steps:
            return False
        return _evaluations_since_best(state) >= self._patience

    def _since_best(self, state: TrainerState) -> str:
        without = _evaluations_since_best(state)
        if not state.best_global_step:
            return f"{self._measure} was no finite number in {without} evaluations"
        return (
            f"{self._measure} was best at step {state.best_global_step} ({state.best_metric:.4f}) and no better in "
            f"{without} evaluations since"
        )

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


def _evaluations_since_best(state: TrainerState) -> int:
    """How many evaluations up to the state's step, which is one of them, were no better than the best one."""
    if not state.eval_steps:
        return 0
    return int(state.global_step // state.eval_steps - (state.best_global_step or 0) // state.eval_steps)
