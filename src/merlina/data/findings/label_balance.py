"""The balance between unpaired answers labeled true and those labeled false."""

from __future__ import annotations

from typing import NamedTuple

from merlina.schemas.datasets.config import TrainingMode
from merlina.schemas.datasets.responses import DataFinding
from merlina.schemas.training.config import TrainingConfig
from merlina.schemas.training.method import MAX_LABEL_WEIGHT

_MIN_ANSWERS = 20
# The weighted ratio that the paper of KTO recommends (arXiv 2402.01306, section 4.2).
_RATIO = (1.0, 1.5)
# Tolerates the deviation of a random half.
_TOLERANCE = 0.1


class LabelWeights(NamedTuple):
    """The weights of answers in the loss of KTO, by label."""

    desirable: float = 1.0
    undesirable: float = 1.0


def label_weights(config: TrainingConfig) -> LabelWeights | None:
    """Return the weights by label; None for methods that do not use labels."""
    return LabelWeights(config.desirable_weight, config.undesirable_weight) if config.training_mode == "kto" else None


def preview_weights(training_mode: TrainingMode | None) -> LabelWeights | None:
    """Return the default weights by label, for a preview of a data set; None for methods that do not use labels."""
    return LabelWeights() if training_mode == "kto" else None


def label_imbalance(labeled_true: float, labeled_false: float, weights: LabelWeights | None) -> DataFinding | None:
    """Return a finding if one label outweighs the other, with the weight that would balance them.

    With 900 answers labeled true and 100 labeled false, an undesirable_weight between 6 and 9 results in a weighted
    ratio between 1.5 and 1.
    """
    count = round(labeled_true + labeled_false)
    if count < _MIN_ANSWERS or weights is None:
        return None
    if 0 in (labeled_true, labeled_false):
        label = "false" if labeled_true == 0 else "true"
        return _finding(count, f"all {count:,} answers are labeled {label}: kto needs answers of both labels")
    true, false = weights.desirable * labeled_true, weights.undesirable * labeled_false
    low, high = _RATIO
    if low - _TOLERANCE <= true / false <= high + _TOLERANCE:
        return None
    if true > false:
        name, least, most = "undesirable_weight", true / labeled_false / high, true / labeled_false / low
    else:
        name, least, most = "desirable_weight", false / labeled_true * low, false / labeled_true * high
    advice = f"set {name} to a value between {_shown(least)} and {_shown(min(most, MAX_LABEL_WEIGHT))}"
    if least > MAX_LABEL_WEIGHT:
        advice = "no weight balances them; use fewer answers of the larger label"
    return _finding(
        count,
        f"{round(labeled_true):,} answers are labeled true and {round(labeled_false):,} false, and with "
        f"desirable_weight {weights.desirable:g} and undesirable_weight {weights.undesirable:g} one label outweighs "
        f"the other: {advice}",
    )


def _finding(count: int, message: str) -> DataFinding:
    return DataFinding(kind="label_imbalance", count=count, rows=[], message=message)


def _shown(weight: float) -> str:
    """Return a weight with two significant digits, and all digits before the point."""
    return f"{weight:,.0f}" if weight >= 10 else f"{weight:.2g}"
