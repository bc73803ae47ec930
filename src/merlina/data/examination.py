"""The row examiner of a chat format, and the loop that passes every row of a data set to it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from merlina.data.chat_formats import MARKERS
from merlina.data.conversation import Pair, UnusableRowError
from merlina.data.dataset import SkippedRow
from merlina.data.row_examiner import Lengths, RowExaminer
from merlina.schemas.datasets import FindingKind, FormatType

_T = TypeVar("_T")
Converter = Callable[[Pair], tuple[_T, Lengths | None, Iterable[FindingKind]]]
"""Return a pair's conversion, its lengths if it has tokens, and remarks. Raise UnusableRowError to skip the pair."""


def row_examiner(format_type: FormatType, special_tokens: Sequence[str] = ()) -> RowExaminer:
    """Return the examiner of rows for a chat format; `tokenizer` uses the `special_tokens` as markers."""
    return RowExaminer(MARKERS.get(format_type, special_tokens), expects_formatted=format_type == "raw")


def examine(
    rows: Iterable[Pair | SkippedRow], examiner: RowExaminer, convert: Converter[_T]
) -> Iterator[tuple[Pair, _T] | SkippedRow]:
    """Yield each pair with what `convert` made of it, or the unusable row, after the examiner has counted it."""
    for row in rows:
        if isinstance(row, SkippedRow):
            skipped = row
        else:
            try:
                converted, lengths, remarks = convert(row)
            except UnusableRowError as error:
                skipped = SkippedRow(row.number, error.message, error.kind)
            else:
                examiner.add_pair(row, lengths, remarks)
                yield row, converted
                continue
        examiner.add_skipped(skipped)
        yield skipped
