"""Alarms: conditions on metrics that end a run with an error or cause a warning.

The windows of metrics that alarms watch are not part of checkpoints: a resumed run fills them again from its first
step.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

from merlina.errors import TrainingError
from merlina.schemas.events import LogLevel

Notify = Callable[[LogLevel, str], None]
"""A function that reports a message to the user at a level."""

# A loss has exploded if it is this many median absolute deviations above the median, in this many steps in a row. A
# single step may jump. The median and the deviation are not affected by such jumps, unlike mean and variance.
_EXPLODED_DEVIATIONS, _EXPLODED_STEPS = 20.0, 5
_LOSS_WINDOW, _MIN_LOSSES = 64, 16
_WINDOW = 25
_WORSE_EVALUATIONS = 3
_NAMED_ROWS = 5


def check_losses(step: int, rows: Sequence[int], losses: Sequence[float]) -> None:
    """Check the losses of a step's pairs, given with their row numbers. Raises TrainingError if one is not finite."""
    bad = [(row, loss) for row, loss in zip(rows, losses, strict=True) if not math.isfinite(loss)]
    if not bad:
        return
    named = ", ".join(str(row) for row, _ in bad[:_NAMED_ROWS])
    which = f"row {named}" if len(bad) == 1 else f"{len(bad)} of the {len(rows)} pairs, among them rows {named}"
    raise TrainingError(
        f"The loss became {bad[0][1]} in step {step}, from {which}: the training has diverged. "
        "Try a lower learning_rate or a dtype of float32; if it is always the same row, check that row"
    )


class Alarms:
    """Watches the metrics of steps and evaluations. Each warning is given once until its condition no longer holds."""

    def __init__(self, notify: Notify, *, has_evaluations: bool) -> None:
        self._notify = notify
        self._has_evaluations = has_evaluations
        self._healthy: deque[float] = deque(maxlen=_LOSS_WINDOW)
        self._outliers: list[float] = []
        self._first: list[Mapping[str, float]] = []
        self._latest: deque[Mapping[str, float]] = deque(maxlen=_WINDOW)
        self._evaluations: list[float] = []
        self._active: set[str] = set()

    def step(self, step: int, loss: float, metrics: Mapping[str, float]) -> None:
        """Check the mean metrics of one optimizer step. Raises TrainingError if the loss has exploded."""
        self._watch_loss(step, loss)
        if not {"reward_margin", "logps_chosen"} <= metrics.keys():
            return
        if len(self._first) < _WINDOW:
            self._first.append(metrics)
        self._latest.append(metrics)
        if len(self._latest) == _WINDOW and step >= 2 * _WINDOW:
            self._watch_chosen(step)
            if not self._has_evaluations and "reward_accuracy" in metrics:
                self._watch_accuracy(step, self._mean("reward_accuracy", self._latest), "of the latest steps")

    def evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        """Check the metrics of an evaluation after a step; their names begin with `eval_`."""
        if "eval_loss" in metrics:
            self._evaluations.append(metrics["eval_loss"])
            self._watch_evaluations(step)
        if "eval_reward_accuracy" in metrics and len(self._evaluations) > 2:
            self._watch_accuracy(step, metrics["eval_reward_accuracy"], "of the evaluation")

    def _watch_loss(self, step: int, loss: float) -> None:
        if len(self._healthy) >= _MIN_LOSSES:
            median = statistics.median(self._healthy)
            deviation = statistics.median(abs(other - median) for other in self._healthy)
            # The second bound keeps a nearly constant loss, with a deviation close to 0, from triggering the alarm.
            if loss > median + max(_EXPLODED_DEVIATIONS * deviation, 2 * abs(median) + 1):
                self._outliers.append(loss)
                if len(self._outliers) >= _EXPLODED_STEPS:
                    raise TrainingError(
                        f"The loss has exploded: {', '.join(f'{one:.3g}' for one in self._outliers)} in the "
                        f"{_EXPLODED_STEPS} steps up to {step}; its median was {median:.3g} before. "
                        "Try a lower learning_rate or a smaller max_grad_norm, or resume from the last checkpoint"
                    )
                return
        self._outliers.clear()
        self._healthy.append(loss)

    def _watch_chosen(self, step: int) -> None:
        before, now = self._mean("logps_chosen", self._first), self._mean("logps_chosen", self._latest)
        margin_before, margin = self._mean("reward_margin", self._first), self._mean("reward_margin", self._latest)
        fell = now < before - 0.1 * abs(before) - 0.05 and margin > margin_before
        self._warn_while(
            "chosen",
            fell,
            f"Step {step}: the chosen answers become less likely ({before:.3f} to {now:.3f} a token) while the reward "
            f"margin rises ({margin_before:.3f} to {margin:.3f}): the model unlearns both answers, one faster. A "
            "larger beta or a lower learning_rate prevents this; orpo and cpo also train on the chosen answer itself",
        )

    def _watch_evaluations(self, step: int) -> None:
        latest = self._evaluations[-_WORSE_EVALUATIONS - 1 :]
        rises = [later > earlier for earlier, later in pairwise(latest)]
        worse = len(rises) == _WORSE_EVALUATIONS and all(rises)
        self._warn_while(
            "evaluation",
            worse,
            f"Step {step}: the evaluation loss has risen {_WORSE_EVALUATIONS} times in a row "
            f"({', '.join(f'{loss:.4f}' for loss in latest)}): the model is overfitting. "
            "early_stopping_patience ends a run at this point, load_best_at_end keeps its best model",
        )

    def _watch_accuracy(self, step: int, accuracy: float, where: str) -> None:
        self._warn_while(
            "accuracy",
            accuracy < 0.5,
            f"Step {step}: the model prefers the rejected answer in {1 - accuracy:.0%} of the pairs {where}. "
            "Check that chosen and rejected are not swapped; otherwise a higher learning_rate or more steps may help",
        )

    def _warn_while(self, name: str, wrong: bool, message: str) -> None:
        if not wrong:
            self._active.discard(name)
        elif name not in self._active:
            self._active.add(name)
            self._notify("warning", message)

    @staticmethod
    def _mean(name: str, rows: Sequence[Mapping[str, float]] | deque[Mapping[str, float]]) -> float:
        return statistics.fmean(row[name] for row in rows)
