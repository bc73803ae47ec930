"""The split of a data set: which of its rows are held out for evaluation."""

from __future__ import annotations

import random
from collections.abc import Iterable


def held_out_count(rows: int, test_size: float) -> int:
    """Return the number of rows to hold out for evaluation, with all of their pairs, out of `rows` usable ones."""
    if test_size == 0 or rows < 2:
        return 0
    return min(max(1, round(rows * test_size)), rows - 1)


def held_out_rows(numbers: Iterable[int], test_size: float, seed: int) -> frozenset[int]:
    """Return the numbers of the rows that are held out, determined by `seed`.

    `numbers` has the row number of each pair. A `test_size` above 0 holds out at least one row and leaves at least one
    for training.
    """
    rows = list(dict.fromkeys(numbers))
    count = held_out_count(len(rows), test_size)
    chosen = random.Random(seed).sample(range(len(rows)), count)  # noqa: S311
    return frozenset(rows[index] for index in chosen)
