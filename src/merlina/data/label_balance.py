"""The balance between unpaired answers labeled true and those labeled false."""

from __future__ import annotations

from typing import NamedTuple

from merlina.schemas.datasets.responses import DataFinding
from merlina.schemas.training import TrainingConfig

_MIN_ANSWERS = 20
# The weighted ratio that the paper of KTO recommends (arXiv 2402.01306, section 4.2).
_RATIO = (1.0, 1.5)
# Leaves a random half of either label in peace.
_TOLERANCE = 0.1


class LabelWeights(NamedTuple):
    """The weights of answers in the loss of KTO, by label."""

    desirable: float
    undesirable: float


NO_LABEL_WEIGHTS = LabelWeights(1.0, 1.0)


def label_weights(config: TrainingConfig) -> LabelWeights:
    return LabelWeights(config.desirable_weight, config.undesirable_weight)


def label_imbalance(labeled_true: int, labeled_false: int, weights: LabelWeights) -> DataFinding | None:
    """Return a finding if one label outweighs the other, with the weight that would balance them.

    With 900 answers labeled true and 100 labeled false, an undesirable_weight between 6 and 9 results in a weighted
    ratio between 1.5 and 1.
    """
    count = labeled_true + labeled_false
    if count < _MIN_ANSWERS:
        return None
    if 0 in (labeled_true, labeled_false):
        label = "false" if labeled_true == 0 else "true"
        message = f"all {count:,} answers are labeled {label}: there is nothing to tell them from"
        return DataFinding(kind="label_imbalance", count=count, rows=[], message=message)
    true, false = weights.desirable * labeled_true, weights.undesirable * labeled_false
    low, high = _RATIO
    if low - _TOLERANCE <= true / false <= high + _TOLERANCE:
        return None
    if true > false:
        name, least, most = "undesirable_weight", true / labeled_false / high, true / labeled_false / low
    else:
        name, least, most = "desirable_weight", false / labeled_true * low, false / labeled_true * high
    message = (
        f"{labeled_true:,} answers are labeled true and {labeled_false:,} false, so that with these weights one label "
        f"outweighs the other: set {name} to a value between {least:.2g} and {most:.2g}"
    )
    return DataFinding(kind="label_imbalance", count=count, rows=[], message=message)
