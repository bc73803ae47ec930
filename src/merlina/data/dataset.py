"""Convert the rows of a data set to pairs, record every unusable row, and split off held-out pairs."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import TypeVar

from merlina.data.columns import check_mapping, map_columns
from merlina.data.conversation import Pair, UnusableKind, UnusableRowError
from merlina.data.pairs import to_demonstration, to_pair
from merlina.data.readers.files import Row
from merlina.data.readers.row_limit import RowLimit, approximate_size
from merlina.data.readers.sources import open_rows
from merlina.schemas.datasets import DatasetConfig

_ROWS_WITH_ALL_COLUMNS = 20
_BYTES_HELD_FOR_COLUMNS = 16 * 1024**2
_USUAL_LIMIT = RowLimit()
_T = TypeVar("_T")


@dataclass(frozen=True)
class SkippedRow:
    """A row that cannot be converted to a pair; rows are numbered from 1."""

    number: int
    reason: str
    kind: UnusableKind = "unusable"


def read_pairs(
    config: DatasetConfig,
    file: Path | None,
    token: str | None,
    *,
    needs_rejected: bool = True,
    download: bool = False,
    limit: RowLimit = _USUAL_LIMIT,
) -> Iterator[Pair | SkippedRow]:
    """Yield each of at most `max_samples` rows as a pair or as a SkippedRow with the reason.

    Rejected answers are ignored unless `needs_rejected`. With `download`, a Hub data set is cached first. Raises
    DataError if `column_mapping` names a column that none of the first rows has.
    """
    rows = islice(open_rows(config.source, file, token, download=download, limit=limit), config.max_samples)
    first = _first_rows(rows) if config.column_mapping else []
    check_mapping(first, config.column_mapping)
    convert = to_pair if needs_rejected else to_demonstration
    for number, row in enumerate(chain(first, rows), start=1):
        try:
            yield replace(convert(map_columns(row, config.column_mapping)), number=number)
        except UnusableRowError as error:
            yield SkippedRow(number, error.message, error.kind)


def _first_rows(rows: Iterator[Row]) -> list[Row]:
    """Return the first 20 rows, in which every column should occur, or fewer if they take more than 16 MiB."""
    first: list[Row] = []
    budget = _BYTES_HELD_FOR_COLUMNS
    for row in islice(rows, _ROWS_WITH_ALL_COLUMNS):
        first.append(row)
        budget -= approximate_size(row, budget)
        if budget <= 0:
            break
    return first


def held_out_count(pairs: int, test_size: float) -> int:
    """Return how many of `pairs` pairs are held out for evaluation."""
    if test_size == 0 or pairs < 2:
        return 0
    return min(max(1, round(pairs * test_size)), pairs - 1)


def split_pairs(pairs: Sequence[_T], test_size: float, seed: int) -> tuple[list[_T], list[_T]]:
    """Split pairs, or their numbers, into (training, held out), determined by `seed`; both parts keep their order.

    A `test_size` above 0 holds out at least one pair and leaves at least one for training.
    """
    count = held_out_count(len(pairs), test_size)
    if count == 0:
        return list(pairs), []
    held_out = set(random.Random(seed).sample(range(len(pairs)), count))  # noqa: S311
    training = [pair for index, pair in enumerate(pairs) if index not in held_out]
    return training, [pairs[index] for index in sorted(held_out)]
