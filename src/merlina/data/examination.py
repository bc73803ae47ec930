"""The loop that passes every row of a data set to the row examiner."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from merlina.data.dataset import SkippedRow
from merlina.data.pairs import Pair, UnusableRowError
from merlina.data.row_examiner import Lengths, RowExaminer

_T = TypeVar("_T")


def examine(
    rows: Iterable[Pair | SkippedRow], examiner: RowExaminer, convert: Callable[[Pair], tuple[_T, Lengths | None]]
) -> Iterator[tuple[Pair, _T] | SkippedRow]:
    """Yield each pair with what `convert` made of it, or the unusable row, after the examiner has counted it.

    `convert` also returns the pair's lengths in tokens, if it has tokens, and raises UnusableRowError to skip a pair.
    """
    for row in rows:
        if isinstance(row, SkippedRow):
            skipped = row
        else:
            try:
                converted, lengths = convert(row)
            except UnusableRowError as error:
                skipped = SkippedRow(row.number, error.message, error.kind)
            else:
                examiner.add_pair(row, lengths)
                yield row, converted
                continue
        examiner.add_skipped(skipped)
        yield skipped
