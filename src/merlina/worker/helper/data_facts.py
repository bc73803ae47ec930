"""Examination of a data set's first rows for the checks before a run."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from merlina.data.conversation import Pair
from merlina.data.dataset import held_out_rows, numbered_from, read_pairs, unused_columns
from merlina.data.examination import examine, row_examiner
from merlina.data.label_balance import label_weights
from merlina.data.readers.row_limit import RowLimit
from merlina.data.readers.sources import describe_encoding
from merlina.data.row_examiner import Lengths, RowExaminer
from merlina.schemas.datasets.config import DatasetPart, FindingKind
from merlina.schemas.inspection import DataFacts, PairTokens
from merlina.schemas.training import TrainingConfig
from merlina.worker.encoding import PairEncoder

_MAX_SECONDS = 3.0


def examine_data(
    training: TrainingConfig,
    files: Mapping[str, Path | None],
    token: str | None,
    row_limit: RowLimit,
    max_rows: int,
    encoder: PairEncoder | None,
) -> DataFacts:
    """Return the examiner's findings on the first `max_rows` rows, or on those that can be read in three seconds.

    `files` are those of the sources by their field, None for the Hub; sources that are not among them are left out.
    Each source has an equal share of rows and time. The lengths include those of data sets to evaluate on. Without an
    `encoder`, the text alone is examined. Raises DataError.
    """
    dataset = training.dataset
    training_parts, eval_parts = (
        [part for part in parts if part.location in files] for parts in (dataset.training_parts, dataset.eval_parts)
    )
    share = 1 / len([*training_parts, *eval_parts])

    def examine_parts(parts: Sequence[DatasetPart]) -> tuple[RowExaminer, bool]:
        sources = [
            read_pairs(
                part.config, files[part.location], token, answers_needed=training.answers_needed, limit=row_limit
            )
            for part in parts
        ]
        unused = unused_columns(source.conversion for source in sources)
        examiner = encoder.row_examiner(unused) if encoder else row_examiner(dataset.format.format_type, unused)
        before, has_more = 0, False
        for source in sources:
            enough, deadline = examiner.rows + max(1, int(max_rows * share)), time.monotonic() + _MAX_SECONDS * share
            for _ in examine(numbered_from(before, source), examiner, partial(_measure, encoder=encoder)):
                if examiner.rows >= enough or time.monotonic() > deadline:
                    break
            # Reading one more row shows whether there are further rows.
            has_more |= next(source, None) is not None
            before += source.count
        return examiner, has_more

    examiner, has_more = examine_parts(training_parts)
    evaluated, _ = examine_parts(eval_parts)
    held_out = held_out_rows(examiner.numbers, dataset.test_size, training.seed)
    means = examiner.mean_tokens
    return DataFacts(
        rows=examiner.rows,
        all_rows=not has_more,
        usable=examiner.usable,
        longest=max(examiner.longest, evaluated.longest) or None,
        highest_id=examiner.highest_id or None,
        highest_id_row=examiner.highest_id_row or None,
        most_tokens=max(examiner.most_tokens, evaluated.most_tokens) or None,
        mean_tokens=PairTokens(prompt=means[0], chosen=means[1], rejected=means[2]) if means else None,
        findings=examiner.findings(held_out, label_weights(training)),
        notes=[note for part in training_parts for note in describe_encoding(part.config.source, files[part.location])],
    )


def _measure(pair: Pair, encoder: PairEncoder | None) -> tuple[None, Lengths | None, frozenset[FindingKind]]:
    if encoder is None:
        return None, None, frozenset()
    encoded = encoder.encode(pair)
    return None, encoded.lengths, encoded.text.remarks
