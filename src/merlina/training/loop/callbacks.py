"""The Trainer callback that reports progress, requests the last evaluation and stops the run."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState

from merlina.faults import FaultPoint, reach
from merlina.training.distributed.ranks import Ranks
from merlina.training.reporter import Reporter


class ProgressCallback(TrainerCallback):  # type: ignore[misc]
    """Reports each step, stops when requested, and evaluates after the last step."""

    def __init__(self, reporter: Reporter, ranks: Ranks, *, evaluates: bool) -> None:
        self._reporter = reporter
        self._ranks = ranks
        self._evaluates = evaluates

    def on_train_begin(self, _args: Any, state: TrainerState, _control: TrainerControl, **_: Any) -> None:
        if state.global_step:
            reach(FaultPoint.RESUME_LOADED)
        self._reporter.progress(state.global_step, state.max_steps)

    def on_step_end(self, _args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> TrainerControl:
        self._reporter.progress(state.global_step, state.max_steps)
        reach(FaultPoint.START_FIRST_STEP)
        if state.global_step >= state.max_steps:
            # The Trainer itself evaluates and logs only at multiples of eval_steps and logging_steps.
            control.should_evaluate = self._evaluates
            control.should_log = True
        # Ranks may receive a request at different steps; all of them follow the first.
        elif self._ranks.broadcast_from_first(self._reporter.should_stop()):
            control.should_training_stop = True
            control.should_save = True
        return control
