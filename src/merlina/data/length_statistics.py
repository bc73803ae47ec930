"""Statistics of the lengths of pairs in tokens: percentiles and a histogram."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from merlina.schemas.inspection import LengthBin, TokenLengths

_MOST_BINS = 10
_ROUND_WIDTHS: list[int] = [number * 10**zeros for zeros in range(12) for number in (1, 2, 5)]
# Longer pairs share the last bin, so that a few very long ones do not squeeze all others into one.
_PERCENT_IN_BINS_OF_ONE_WIDTH = 99


def token_lengths(lengths: Sequence[int], max_length: int) -> TokenLengths:
    """Return the statistics of the lengths of at least one pair."""
    values = np.asarray(lengths, dtype=np.int64)
    return TokenLengths(
        median=_percentile(values, 50),
        percentile_95=_percentile(values, 95),
        longest=int(values.max()),
        max_length=max_length,
        over_max_length=int(np.count_nonzero(values > max_length)),
        histogram=list(_histogram(values)),
    )


def _percentile(values: NDArray[np.int64], percent: int) -> int:
    """Return the smallest of the values that at least `percent` percent of them do not exceed."""
    return int(np.percentile(values, percent, method="inverted_cdf"))


def _histogram(values: NDArray[np.int64]) -> Iterator[LengthBin]:
    """Yield bins of one round width, and a last one for all longer pairs if there are any.

    With 99 of 100 lengths from 37 to 415, the width is 50, and the bins are 1-50, 51-100, … 401-450 and 451 and above.
    """
    shortest, high, longest = int(values.min()), _percentile(values, _PERCENT_IN_BINS_OF_ONE_WIDTH), int(values.max())
    width = _round_width(high - shortest)
    first_bin, last_bin = (shortest - 1) // width, (high - 1) // width
    places = np.minimum((values - 1) // width - first_bin, last_bin - first_bin + 1)
    counts = np.bincount(places)
    for place, pairs in enumerate(counts.tolist()):
        first = (first_bin + place) * width + 1
        is_last = first_bin + place > last_bin
        yield LengthBin(first=first, last=longest if is_last else first + width - 1, pairs=pairs)


def _round_width(span: int) -> int:
    """Return the smallest of 1, 2, 5, 10, 20, 50, … of which ten cover the span."""
    return next(width for width in _ROUND_WIDTHS if width * _MOST_BINS >= span)
