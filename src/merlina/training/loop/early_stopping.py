"""Selection of the best evaluated model, and early stopping."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState

from merlina import checkpoints
from merlina.schemas.training.config import TrainingConfig
from merlina.training.loop.alarms import Notify

_HIGHER_IS_BETTER = {"eval_reward_margin"}


class EarlyStopping(TrainerCallback):  # type: ignore[misc]
    """Ends a run with evaluations that no longer improve, and saves the best model with `load_best_at_end`.

    The best metric and its step are part of the Trainer's state, so a resume restores them; the number of evaluations
    without improvement follows from them. The best checkpoint is kept as long as any checkpoint refers to it.

    Example with eval_steps 10 and early_stopping_patience 2: evaluation losses of 1.0, 0.9, 0.95, 0.92 after steps 10,
    20, 30 and 40 end the run at step 40, 2 evaluations after the best one at step 20.
    """

    def __init__(self, config: TrainingConfig, folder: Path, notify: Notify) -> None:
        self._metric = config.load_best_at_end or "eval_loss"
        self._keeps_best = config.load_best_at_end is not None
        self._patience = config.early_stopping_patience
        self._folder = folder
        self._notify = notify
        self._recalled: float | None = None
        self._lost_step: int | None = None
        self.ended_early = False

    def recall(self, evaluation: Mapping[str, float]) -> None:
        """Set the evaluation of the step from which training resumes.

        The checkpoint may have been written before that evaluation was part of its state.
        """
        self._recalled = evaluation.get(self._metric)

    def on_train_begin(self, _args: Any, state: TrainerState, _control: TrainerControl, **_: Any) -> None:
        # Forget a lost best model first: otherwise the recalled evaluation might not beat it and would be dropped
        # together with it.
        self.forget_lost_best(state)
        self._apply_recalled(state)

    def on_evaluate(
        self, _args: Any, state: TrainerState, control: TrainerControl, metrics: dict[str, float], **_: Any
    ) -> TrainerControl:
        if state.global_step == 0 or self._metric not in metrics:
            return control
        if self._is_better(metrics[self._metric], state.best_metric):
            state.best_metric, state.best_global_step = metrics[self._metric], state.global_step
            if self._keeps_best:
                control.should_save = True
            return control
        if self._is_exhausted(state):
            self.ended_early = True
            control.should_training_stop = True
            self._notify(
                "info",
                f"Ended at step {state.global_step} of {state.max_steps}: {self._since_best(state)} "
                f"(now {metrics[self._metric]:.4f}; early_stopping_patience {self._patience})",
            )
        return control

    def had_ended_early(self, state: TrainerState) -> bool:
        """Return whether the run in this state of a checkpoint had already ended early, so that no step follows."""
        self._apply_recalled(state)
        if not self._is_exhausted(state):
            return False
        self.ended_early = True
        self._notify(
            "info",
            f"The run had ended at step {state.global_step} of {state.max_steps}: {self._since_best(state)} "
            f"(early_stopping_patience {self._patience})",
        )
        return True

    def forget_lost_best(self, state: TrainerState) -> None:
        """Remove the best evaluation from a resumed state if its checkpoint is missing or damaged.

        Call this before any evaluation is compared with it: a model that cannot be loaded must not count as the best.
        """
        step = state.best_global_step
        if not (self._keeps_best and step):
            return
        # The Trainer loads the state a second time; the checkpoint is checked and reported only once.
        if step != self._lost_step:
            reason = checkpoints.check_checkpoint(checkpoints.path_of(self._folder, step))
            if reason is None:
                return
            self._lost_step = step
            self._notify(
                "warning",
                f"{self._metric} was best at step {step} ({state.best_metric:.4f}), but that model is lost ({reason}); "
                "the best of the following evaluations is kept",
            )
        state.best_metric, state.best_global_step = None, None

    def _apply_recalled(self, state: TrainerState) -> None:
        if self._recalled is not None and self._is_better(self._recalled, state.best_metric):
            state.best_metric, state.best_global_step = self._recalled, state.global_step

    def _is_exhausted(self, state: TrainerState) -> bool:
        if self._patience is None or state.global_step >= state.max_steps:
            return False
        return _evaluations_since_best(state) >= self._patience

    def _since_best(self, state: TrainerState) -> str:
        count = _evaluations_since_best(state)
        if not state.best_global_step:
            return f"{self._metric} was not finite in {count} evaluations"
        return (
            f"{self._metric} was best at step {state.best_global_step} ({state.best_metric:.4f}) and not better in "
            f"{count} evaluations since"
        )

    def _is_better(self, value: float, best: float | None) -> bool:
        if not math.isfinite(value):
            return False
        if best is None or not math.isfinite(best):
            return True
        return value > best if self._metric in _HIGHER_IS_BETTER else value < best


def _evaluations_since_best(state: TrainerState) -> int:
    """Return the number of evaluations after the best one, up to and including the state's step."""
    if not state.eval_steps:
        return 0
    return int(state.global_step // state.eval_steps - (state.best_global_step or 0) // state.eval_steps)
