"""The loops that convert the pairs of a data set, one or many at a time, and give each row to the row examiner."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import TypeVar

from merlina.data.conversation import Pair, SkippedRow, UnusableRowError
from merlina.data.findings.row_examiner import Lengths, RowExaminer
from merlina.schemas.datasets.config import FindingKind

_T = TypeVar("_T")
Converted = tuple[_T, Lengths | None, Iterable[FindingKind]]
"""A pair's conversion, its lengths if it has tokens, and the kinds of its findings."""
BatchConversion = Callable[[Sequence[Pair]], Iterable[Converted[_T] | UnusableRowError]]
"""Return for each pair its conversion, or the error for which it is skipped.

The work may begin with the call, in the background, and end with the iteration.
"""


def examine(
    rows: Iterable[Pair | SkippedRow], examiner: RowExaminer, convert: Callable[[Pair], Converted[_T]]
) -> Iterator[tuple[Pair, _T] | SkippedRow]:
    """Yield each pair with what `convert` made of it, or the unusable row, after the examiner has counted it.

    `convert` raises UnusableRowError to skip a pair.
    """
    return examine_each(rows, examiner, one_by_one(convert))


def one_by_one(convert: Callable[[Pair], Converted[_T]]) -> BatchConversion[_T]:
    """Return the conversion of many pairs by a function that converts one or raises UnusableRowError."""

    def convert_all(pairs: Sequence[Pair]) -> Iterator[Converted[_T] | UnusableRowError]:
        for pair in pairs:
            try:
                yield convert(pair)
            except UnusableRowError as error:
                yield error

    return convert_all


def examine_each(
    rows: Iterable[Pair | SkippedRow], examiner: RowExaminer, convert_all: BatchConversion[_T]
) -> Iterator[tuple[Pair, _T] | SkippedRow]:
    """Do the same as `examine` with a conversion of many pairs, which is given one at a time."""
    for row in rows:
        yield from _examined([row], examiner, convert_all(_pairs_of([row])))


def examine_batches(
    rows: Iterable[Pair | SkippedRow],
    examiner: RowExaminer,
    convert_all: BatchConversion[_T],
    *,
    size: int,
) -> Iterator[tuple[Pair, _T] | SkippedRow]:
    """Do the same as `examine` with a conversion of up to `size` pairs at once, which returns errors instead.

    The next pairs are read, and their conversion begins, before the results of the previous ones are awaited.
    """
    remaining = iter(rows)
    begun: Iterator[tuple[Pair, _T] | SkippedRow] = iter(())
    while batch := list(islice(remaining, size)):
        next_begun = _examined(batch, examiner, convert_all(_pairs_of(batch)))
        yield from begun
        begun = next_begun
    yield from begun


def _pairs_of(rows: Iterable[Pair | SkippedRow]) -> list[Pair]:
    return [row for row in rows if isinstance(row, Pair)]


def _examined(
    rows: Iterable[Pair | SkippedRow], examiner: RowExaminer, conversions: Iterable[Converted[_T] | UnusableRowError]
) -> Iterator[tuple[Pair, _T] | SkippedRow]:
    remaining = iter(conversions)
    for row in rows:
        if isinstance(row, SkippedRow):
            skipped = row
        elif isinstance(conversion := next(remaining), UnusableRowError):
            skipped = SkippedRow(row.number, conversion.message, conversion.kind, row.rows)
        else:
            converted, lengths, finding_kinds = conversion
            examiner.add_pair(row, lengths, finding_kinds)
            yield row, converted
            continue
        examiner.add_skipped(skipped)
        yield skipped
