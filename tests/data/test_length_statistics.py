from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from merlina.data.findings.length_statistics import length_histogram, token_lengths


def bins(lengths: list[int]) -> list[tuple[int, int, int]]:
    found = token_lengths(lengths, 100).histogram
    firsts, ends = found.edges[:-1], found.edges[1:]
    return [(first, end - 1, pairs) for first, end, pairs in zip(firsts, ends, found.counts, strict=True)]


def test_every_pair_is_in_the_bin_of_its_length() -> None:
    lengths = np.random.default_rng(0).lognormal(5, 1.5, 5000).astype(int) + 1
    for first, last, pairs in bins(lengths.tolist()):
        assert np.count_nonzero((lengths >= first) & (lengths <= last)) == pairs


def test_percentiles_are_lengths_of_pairs_and_max_length_itself_is_not_too_long() -> None:
    found = token_lengths([*range(1, 101), 101, 102], 100)
    assert (found.histogram.median, found.percentile_95, found.histogram.longest) == (52, 97, 102)
    assert (found.max_length, found.over_max_length) == (100, 2)


def test_a_few_very_long_pairs_share_the_last_bin() -> None:
    found = length_histogram([*range(1, 200), 50_000], "tokens")
    assert found is not None
    assert (found.edges, found.counts[-1]) == ([*range(0, 201, 10), 50_001], 1)
    assert (found.median, found.longest) == (100, 50_000)
    assert length_histogram([], "tokens") is None


def test_the_first_bin_contains_the_shortest_pair() -> None:
    found = length_histogram([*range(1000, 1100)], "tokens")
    assert found is not None
    assert (found.edges[0], found.edges[-1], sum(found.counts)) == (1000, 1100, 100)


@given(st.lists(st.integers(0, 1_000_000), min_size=1, max_size=50))
def test_every_length_is_in_one_of_at_most_22_bins(lengths: list[int]) -> None:
    found = length_histogram(lengths, "tokens")
    assert found is not None
    assert sum(found.counts) == len(lengths)
    assert len(found.edges) == len(found.counts) + 1 <= 23
    assert found.edges == sorted(set(found.edges))
