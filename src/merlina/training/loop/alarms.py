"""What goes wrong in a training, noticed from its metrics: some of it ends the run, the rest is said.

What the windows hold isn't kept in checkpoints: a resumed run watches from its first step on afresh.
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
"""Level and message."""

# A step's loss may jump; it may not stay this far out for so many steps in a row.
_EXPLODED_SPREADS, _EXPLODED_STEPS = 20.0, 5
_LOSS_WINDOW, _LOSS_ENOUGH = 64, 16
_WINDOW = 25
_WORSE_EVALUATIONS = 3
_NAMED_ROWS = 5


def check_losses(step: int, rows: Sequence[int], losses: Sequence[float]) -> None:
    """The losses of a step's pairs, by the numbers of their rows. Raises TrainingError where one is no number."""
    bad = [(row, loss) for row, loss in zip(rows, losses, strict=True) if not math.isfinite(loss)]
    if not bad:
        return
    named = ", ".join(str(row) for row, _ in bad[:_NAMED_ROWS])
    which = f"row {named}" if len(bad) == 1 else f"{len(bad)} of the {len(rows)} pairs, among them rows {named}"
    raise TrainingError(
        f"The loss became {bad[0][1]} in step {step}, from {which}: the training has diverged. "
        "Try a lower learning_rate or a dtype of float32; where it is always the same row, look at that row"
    )


class Alarms:
    """Watches a run step by step and evaluation by evaluation; each warning is said once until it is over."""

    def __init__(self, say: Notify, *, has_evaluations: bool) -> None:
        self._say = say
        self._has_evaluations = has_evaluations
        self._healthy: deque[float] = deque(maxlen=_LOSS_WINDOW)
        self._outliers: list[float] = []
        self._first: list[Mapping[str, float]] = []
        self._latest: deque[Mapping[str, float]] = deque(maxlen=_WINDOW)
        self._evaluations: list[float] = []
        self._said: set[str] = set()

    def step(self, step: int, loss: float, metrics: Mapping[str, float]) -> None:
        """The means of one optimizer step. Raises TrainingError where the loss has exploded."""
        self._watch_loss(step, loss)
        if "reward_margin" not in metrics:
            return
        if len(self._first) < _WINDOW:
            self._first.append(metrics)
        self._latest.append(metrics)
        if len(self._latest) == _WINDOW and step >= 2 * _WINDOW:
            self._watch_chosen(step)
            if not self._has_evaluations:
                self._watch_accuracy(step, self._mean("reward_accuracy", self._latest), "of the last steps")

    def evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        """The metrics of an evaluation after a step; their names begin with `eval_`."""
        if "eval_loss" in metrics:
            self._evaluations.append(metrics["eval_loss"])
            self._watch_evaluations(step)
        if "eval_reward_accuracy" in metrics and len(self._evaluations) > 2:
            self._watch_accuracy(step, metrics["eval_reward_accuracy"], "on the held-out pairs")

    def _watch_loss(self, step: int, loss: float) -> None:
        if len(self._healthy) >= _LOSS_ENOUGH:
            middle = statistics.median(self._healthy)
            spread = statistics.median(abs(other - middle) for other in self._healthy)
            if loss > middle + max(_EXPLODED_SPREADS * spread, 2 * abs(middle) + 1):
                self._outliers.append(loss)
                if len(self._outliers) >= _EXPLODED_STEPS:
                    raise TrainingError(
                        f"The loss has exploded: {', '.join(f'{one:.3g}' for one in self._outliers)} in the "
                        f"{_EXPLODED_STEPS} steps up to {step}, where it was {middle:.3g} before. "
                        "Try a lower learning_rate or a smaller max_grad_norm, or resume from the last checkpoint"
                    )
                return
        self._outliers.clear()
        self._healthy.append(loss)

    def _watch_chosen(self, step: int) -> None:
        before, now = self._mean("logps_chosen", self._first), self._mean("logps_chosen", self._latest)
        margin_before, margin = self._mean("reward_margin", self._first), self._mean("reward_margin", self._latest)
        fell = now < before - 0.1 * abs(before) - 0.05 and margin > margin_before
        self._say_while(
            "chosen",
            fell,
            f"Step {step}: the chosen answers become less likely ({before:.3f} to {now:.3f} a token) while the reward "
            f"margin rises ({margin_before:.3f} to {margin:.3f}): the model unlearns both answers, one faster. A "
            "larger beta or a lower learning_rate holds it back; orpo and cpo learn the chosen answer as well",
        )

    def _watch_evaluations(self, step: int) -> None:
        latest = self._evaluations[-_WORSE_EVALUATIONS - 1 :]
        rises = [later > earlier for earlier, later in pairwise(latest)]
        worse = len(rises) == _WORSE_EVALUATIONS and all(rises)
        self._say_while(
            "evaluation",
            worse,
            f"Step {step}: the evaluation loss has risen {_WORSE_EVALUATIONS} times in a row "
            f"({', '.join(f'{loss:.4f}' for loss in latest)}): the pairs are being learnt by heart. "
            "early_stopping_patience ends a run there, load_best_at_end keeps its best model",
        )

    def _watch_accuracy(self, step: int, accuracy: float, where: str) -> None:
        self._say_while(
            "accuracy",
            accuracy < 0.5,
            f"Step {step}: the rejected answer is the likelier one in {1 - accuracy:.0%} of the pairs {where}. "
            "Are chosen and rejected the right way round? Else a higher learning_rate or more steps may be needed",
        )

    def _say_while(self, name: str, wrong: bool, message: str) -> None:
        if not wrong:
            self._said.discard(name)
        elif name not in self._said:
            self._said.add(name)
            self._say("warning", message)

    @staticmethod
    def _mean(name: str, rows: Sequence[Mapping[str, float]] | deque[Mapping[str, float]]) -> float:
        return statistics.fmean(row[name] for row in rows)
