"""Statistics of the lengths of pairs: a histogram with bins of a round width, and percentiles."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Literal

import numpy as np

from merlina.data.conversation import Pair
from merlina.schemas.datasets.responses import LengthHistogram
from merlina.schemas.inspection import TokenLengths

_USUAL_BINS = 20
# A few very long pairs share the last bin, so that the others do not share the first.
_USUAL_PERCENT = 98
_ROUND_FACTORS = (1, 2, 5, 10)


def character_length(pair: Pair) -> int:
    """Return the number of characters of the prompt with the longer answer."""
    return sum(len(turn.content) for turn in pair.prompt) + max(answer.num_characters for answer in pair.answers)


def length_histogram(lengths: Sequence[int], unit: Literal["tokens", "characters"]) -> LengthHistogram | None:
    """Return the histogram of these lengths; None if there are none.

    Example: the lengths 3, 12, 14 and 900 give a bin for each length from 3 to 14 and a last one from 15 to 900.
    """
    if not lengths:
        return None
    shortest, longest = min(lengths), max(lengths)
    usual = int(np.percentile(lengths, _USUAL_PERCENT, method="lower"))
    width = _round_up((usual + 1 - shortest) / _USUAL_BINS)
    first = shortest // width
    bins = math.ceil((usual + 1) / width) - first
    edges = [width * index for index in range(first, first + bins + 1)]
    if longest >= edges[-1]:
        edges.append(longest + 1)
    counts, _ = np.histogram(lengths, edges)
    return LengthHistogram(
        unit=unit,
        edges=edges,
        counts=counts.tolist(),
        median=round(statistics.median(lengths)),
        longest=longest,
    )


def token_lengths(lengths: Sequence[int], max_length: int) -> TokenLengths:
    """Return the statistics of the lengths of at least one pair, in tokens."""
    histogram = length_histogram(lengths, "tokens")
    assert histogram is not None
    values = np.asarray(lengths, dtype=np.int64)
    return TokenLengths(
        percentile_95=int(np.percentile(values, 95, method="inverted_cdf")),
        max_length=max_length,
        over_max_length=int(np.count_nonzero(values > max_length)),
        histogram=histogram,
    )


def _round_up(width: float) -> int:
    """Return the smallest of 1, 2, 5, 10, 20, 50, … that is at least `width`."""
    power = int(10 ** max(0, math.floor(math.log10(width))))
    return next(power * factor for factor in _ROUND_FACTORS if power * factor >= width)
