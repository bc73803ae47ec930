from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from merlina.chat.win_rate import win_rate


@pytest.mark.parametrize(
    ("wins", "losses", "low", "high"),
    [
        # Newcombe 1998 (doi 10.1002/(SICI)1097-0258(19980430)17:8<857::AID-SIM777>3.0.CO;2-E), table I, method 3
        (81, 182, 0.2553, 0.3662),
        (15, 133, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 28, 0.0061, 0.1718),
    ],
)
def test_the_interval_is_wilsons(wins: int, losses: int, low: float, high: float) -> None:
    found = win_rate(wins, losses)
    assert found is not None
    assert (found.low, found.high) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(0, 1000), st.integers(0, 1000))
def test_the_bounds_solve_the_score_equation(wins: int, losses: int) -> None:
    found = win_rate(wins, losses)
    assert (found is None) == (wins + losses == 0)
    if found is None:
        return
    assert 0 <= found.low <= found.rate <= found.high <= 1
    for end in (found.low, found.high):
        if 0 < end < 1 and not math.isclose(end, found.rate, abs_tol=1e-12):
            score = abs(found.rate - end) / math.sqrt(end * (1 - end) / (wins + losses))
            assert score == pytest.approx(1.959964, abs=1e-5)
