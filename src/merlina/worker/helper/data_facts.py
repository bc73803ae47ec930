"""Examination of a data set's first rows for the checks before a run."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from merlina.data.chat_formats import MARKERS
from merlina.data.dataset import SkippedRow, read_pairs, split_pairs
from merlina.data.examination import examine
from merlina.data.pairs import Pair
from merlina.data.readers.row_limit import RowLimit
from merlina.data.row_examiner import Lengths, RowExaminer
from merlina.schemas.inspection import DataFacts, PairTokens
from merlina.schemas.training import TrainingConfig

_MAX_SECONDS = 3.0


def examine_data(
    training: TrainingConfig,
    file: Path | None,
    token: str | None,
    row_limit: RowLimit,
    max_rows: int,
    measure: Callable[[Pair], Lengths] | None,
) -> DataFacts:
    """Return the examiner's findings on the first `max_rows` rows, or on those that can be read in three seconds.

    `measure` returns a pair's lengths in tokens; None: the text alone is examined. Raises DataError.
    """
    dataset = training.dataset
    examiner = RowExaminer(MARKERS[dataset.format.format_type])
    numbers: list[int] = []
    deadline = time.monotonic() + _MAX_SECONDS
    rows = read_pairs(dataset, file, token, needs_rejected=training.needs_rejected, limit=row_limit)
    for outcome in examine(rows, examiner, lambda pair: (None, measure(pair) if measure else None)):
        if not isinstance(outcome, SkippedRow):
            numbers.append(outcome[0].number)
        if examiner.rows >= max_rows or time.monotonic() > deadline:
            break
    # Reading one more row shows whether there are further rows.
    has_more = next(rows, None) is not None
    _, held_out = split_pairs(numbers, dataset.test_size, training.seed)
    means = examiner.mean_tokens
    return DataFacts(
        rows=examiner.rows,
        all_rows=not has_more,
        usable=examiner.usable,
        longest=examiner.longest or None,
        highest_id=examiner.highest_id or None,
        highest_id_row=examiner.highest_id_row or None,
        most_tokens=examiner.most_tokens or None,
        mean_tokens=PairTokens(prompt=means[0], chosen=means[1], rejected=means[2]) if means else None,
        findings=examiner.findings(held_out),
    )
