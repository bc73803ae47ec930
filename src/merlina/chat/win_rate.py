"""How often a job's model is preferred to its base, and how sure that is."""

from __future__ import annotations

import math
from dataclasses import dataclass

_Z = 1.959963984540054  # two-sided 95 % of the normal distribution


@dataclass(frozen=True)
class WinRate:
    """A share of the votes that decided for a side, with the ends of its 95 % interval."""

    rate: float
    low: float
    high: float


def win_rate(wins: int, losses: int) -> WinRate | None:
    """The rate with its score interval (Wilson 1927, eq. for a binomial proportion); None without votes.

    It holds for few votes and for rates near 0 and 1 too, where the usual interval has no width or leaves [0, 1].
    """
    votes = wins + losses
    if votes == 0:
        return None
    rate = wins / votes
    shrink = 1 + _Z**2 / votes
    centre = (rate + _Z**2 / (2 * votes)) / shrink
    half = _Z * math.sqrt(rate * (1 - rate) / votes + _Z**2 / (4 * votes**2)) / shrink
    # At 0 and 1 the interval ends at the rate itself, but for rounding.
    return WinRate(rate, min(rate, max(0.0, centre - half)), max(rate, min(1.0, centre + half)))
