from __future__ import annotations

import numpy as np
import pytest

from merlina.data.length_statistics import token_lengths


def bins(lengths: list[int]) -> list[tuple[int, int, int]]:
    return [(one.first, one.last, one.pairs) for one in token_lengths(lengths, 100).histogram]


def test_a_few_very_long_pairs_share_the_last_bin() -> None:
    lengths = [*np.linspace(37, 415, 199).astype(int).tolist(), 9000]
    found = bins(lengths)
    assert [first for first, _, _ in found] == [1, 51, 101, 151, 201, 251, 301, 351, 401, 451]
    assert found[-1] == (451, 9000, 1)
    assert sum(pairs for _, _, pairs in found) == 200


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        ([1], [(1, 1, 1)]),
        ([7, 7, 7], [(7, 7, 3)]),
        ([10, 12, 12], [(10, 10, 1), (11, 11, 0), (12, 12, 2)]),
        ([20, 21, 40], [(19, 20, 1), (21, 22, 1), *((first, first + 1, 0) for first in range(23, 39, 2)), (39, 40, 1)]),
    ],
)
def test_bins_have_a_round_width_and_begin_with_the_shortest_pair(
    lengths: list[int], expected: list[tuple[int, int, int]]
) -> None:
    assert bins(lengths) == expected


def test_every_pair_is_in_the_bin_of_its_length() -> None:
    lengths = np.random.default_rng(0).lognormal(5, 1.5, 5000).astype(int) + 1
    for first, last, pairs in bins(lengths.tolist()):
        assert np.count_nonzero((lengths >= first) & (lengths <= last)) == pairs


def test_percentiles_are_lengths_of_pairs_and_max_length_itself_is_not_too_long() -> None:
    found = token_lengths([*range(1, 101), 101, 102], 100)
    assert (found.median, found.percentile_95, found.longest) == (51, 97, 102)
    assert (found.max_length, found.over_max_length) == (100, 2)
