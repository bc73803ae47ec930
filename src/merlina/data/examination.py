"""The loop that passes every row of a data set through the data doctor."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from merlina.data.dataset import SkippedRow
from merlina.data.doctor import Doctor, Lengths
from merlina.data.pairs import Pair, UnusableRowError

_T = TypeVar("_T")


def examine(
    rows: Iterable[Pair | SkippedRow], doctor: Doctor, convert: Callable[[Pair], tuple[_T, Lengths | None]]
) -> Iterator[tuple[Pair, _T] | SkippedRow]:
    """Yield each pair with what `convert` made of it, or the row that cannot be used, after the doctor has counted it.

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
                doctor.see(row, lengths)
                yield row, converted
                continue
        doctor.skip(skipped)
        yield skipped
