"""Convert the rows of a data set to pairs, record every unusable row, and split off held-out pairs."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path

from merlina.data.cleaning import Cleaning
from merlina.data.columns import check_mapping
from merlina.data.conversation import Pair, SkippedRow
from merlina.data.readers.files import Row
from merlina.data.readers.row_limit import RowLimit, approximate_size
from merlina.data.readers.sources import open_rows
from merlina.data.row_formats.conversion import RowConversion, conversion_of
from merlina.schemas.datasets import AnswersNeeded, DatasetConfig

_ROWS_WITH_ALL_COLUMNS = 20
_BYTES_HELD_FOR_COLUMNS = 16 * 1024**2
_USUAL_LIMIT = RowLimit()


class PairRows(Iterator[Pair | SkippedRow]):
    """The rows of a data set as pairs and skipped rows, with the `conversion` that they pass."""

    def __init__(self, conversion: RowConversion, rows: Iterable[Row]) -> None:
        self.conversion = conversion
        self._outcomes = Cleaning(conversion.config).outcomes(conversion.outcomes(rows))

    def __next__(self) -> Pair | SkippedRow:
        return next(self._outcomes)


def read_pairs(
    config: DatasetConfig,
    file: Path | None,
    token: str | None,
    *,
    answers_needed: AnswersNeeded = "both",
    download: bool = False,
    limit: RowLimit = _USUAL_LIMIT,
) -> PairRows:
    """Return at most `max_samples` rows as pairs or as SkippedRows with the reason; the first are read at once.

    Pairs have the answers that are needed. With `download`, a Hub data set is cached first. Raises
    DataError if `column_mapping` names a column that none of the first rows has.
    """
    rows = islice(open_rows(config.source, file, token, download=download, limit=limit), config.max_samples)
    first = first_rows(rows)
    check_mapping(first, config.column_mapping)
    return PairRows(conversion_of(config, first, answers_needed), chain(first, rows))


def first_rows(rows: Iterator[Row]) -> list[Row]:
    """Take the first 20 rows, in which every column should occur, or fewer if they take more than 16 MiB."""
    first: list[Row] = []
    budget = _BYTES_HELD_FOR_COLUMNS
    for row in islice(rows, _ROWS_WITH_ALL_COLUMNS):
        first.append(row)
        budget -= approximate_size(row, budget)
        if budget <= 0:
            break
    return first


def held_out_count(rows: int, test_size: float) -> int:
    """Return of how many of `rows` usable rows the pairs are held out for evaluation."""
    if test_size == 0 or rows < 2:
        return 0
    return min(max(1, round(rows * test_size)), rows - 1)


def held_out_rows(numbers: Iterable[int], test_size: float, seed: int) -> frozenset[int]:
    """Return the numbers of the rows that are held out, determined by `seed`. `numbers` are those of all pairs.

    A `test_size` above 0 holds out at least one row and leaves at least one for training.
    """
    rows = list(dict.fromkeys(numbers))
    count = held_out_count(len(rows), test_size)
    chosen = random.Random(seed).sample(range(len(rows)), count)  # noqa: S311
    return frozenset(rows[index] for index in chosen)
