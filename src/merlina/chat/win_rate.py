"""The fraction of votes that prefer a job's model to its base model, with a confidence interval."""

from __future__ import annotations

import math
from dataclasses import dataclass

_Z = 1.959963984540054  # two-sided 95 % of the normal distribution


@dataclass(frozen=True)
class WinRate:
    """The fraction of wins among the decided votes, with the bounds of its 95 % interval."""

    rate: float
    low: float
    high: float


def win_rate(wins: int, losses: int) -> WinRate | None:
    """Return the rate with the score interval of a binomial proportion (Wilson 1927); None without votes.

    Unlike the normal approximation, it is also valid for few votes and for rates near 0 and 1, where that approximation
    has zero width or exceeds [0, 1].
    """
    votes = wins + losses
    if votes == 0:
        return None
    rate = wins / votes
    shrink = 1 + _Z**2 / votes
    center = (rate + _Z**2 / (2 * votes)) / shrink
    half = _Z * math.sqrt(rate * (1 - rate) / votes + _Z**2 / (4 * votes**2)) / shrink
    # At rates of 0 and 1, the bound equals the rate except for rounding.
    return WinRate(rate, min(rate, max(0.0, center - half)), max(rate, min(1.0, center + half)))
