"""Examination of a data set's first rows for the checks before a run."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

from merlina.data.conversation import Pair
from merlina.data.dataset import held_out_rows, read_pairs
from merlina.data.examination import examine, row_examiner
from merlina.data.label_balance import label_weights
from merlina.data.readers.row_limit import RowLimit
from merlina.data.readers.sources import describe_encoding
from merlina.data.row_examiner import Lengths
from merlina.schemas.datasets import FindingKind
from merlina.schemas.inspection import DataFacts, PairTokens
from merlina.schemas.training import TrainingConfig
from merlina.worker.encoding import PairEncoder

_MAX_SECONDS = 3.0


def examine_data(
    training: TrainingConfig,
    file: Path | None,
    token: str | None,
    row_limit: RowLimit,
    max_rows: int,
    encoder: PairEncoder | None,
) -> DataFacts:
    """Return the examiner's findings on the first `max_rows` rows, or on those that can be read in three seconds.

    Without an `encoder`, the text alone is examined. Raises DataError.
    """
    dataset = training.dataset
    rows = read_pairs(dataset, file, token, answers_needed=training.answers_needed, limit=row_limit)
    unused = rows.conversion.unused_columns
    examiner = encoder.row_examiner(unused) if encoder else row_examiner(dataset.format.format_type, unused)
    deadline = time.monotonic() + _MAX_SECONDS
    for _ in examine(rows, examiner, partial(_measure, encoder=encoder)):
        if examiner.rows >= max_rows or time.monotonic() > deadline:
            break
    # Reading one more row shows whether there are further rows.
    has_more = next(rows, None) is not None
    held_out = held_out_rows(examiner.numbers, dataset.test_size, training.seed)
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
        findings=examiner.findings(held_out, label_weights(training)),
        notes=describe_encoding(dataset.source, file),
    )


def _measure(pair: Pair, encoder: PairEncoder | None) -> tuple[None, Lengths | None, frozenset[FindingKind]]:
    if encoder is None:
        return None, None, frozenset()
    encoded = encoder.encode(pair)
    return None, encoded.lengths, encoded.text.remarks
