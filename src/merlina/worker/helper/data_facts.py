"""Examination of a data set's first rows for the checks before a run."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from merlina.data.conversation import Pair
from merlina.data.dataset import (
    PairRows,
    located,
    numbered_from,
    read_sources,
    unused_columns,
)
from merlina.data.findings.examination import examine
from merlina.data.findings.label_balance import label_imbalance, label_weights
from merlina.data.findings.row_examiner import Lengths, RowExaminer, row_examiner
from merlina.data.readers.data_files import file_at
from merlina.data.readers.row_limit import RowLimit
from merlina.data.readers.sources import describe_encoding
from merlina.data.split import held_out_rows
from merlina.domain.data_urls import FileLocation
from merlina.schemas.datasets.config import FindingKind
from merlina.schemas.inspection import DataFacts, PairTokens
from merlina.schemas.training.config import TrainingConfig
from merlina.worker.encoding import PairEncoder

_MAX_SECONDS = 3.0


def examine_data(
    training: TrainingConfig,
    files: Mapping[str, FileLocation | None],
    token: str | None,
    row_limit: RowLimit,
    max_rows: int,
    encoder: PairEncoder | None,
) -> DataFacts:
    """Return facts and findings on the first `max_rows` rows, or on those that can be read in three seconds.

    `files` are those of the sources by their field, None for the Hub; sources that are not among them are left out.
    Each source has an equal share of rows and time. The lengths include those of data sets to evaluate on. Without an
    `encoder`, the text alone is examined. Raises DataError.
    """
    dataset = training.dataset
    parts = [part for part in (*dataset.training_parts, *dataset.eval_parts) if part.location in files]
    trained = [part for part in parts if part in dataset.training_parts]
    sources = [located(part, file_at(files[part.location])) for part in parts]
    training_rows, evaluation = read_sources(
        sources[: len(trained)],
        sources[len(trained) :],
        token,
        answers_needed=training.answers_needed,
        limit=row_limit,
    )
    examination = _Examination(training, encoder, max(1, max_rows // len(parts)), _MAX_SECONDS / len(parts))
    first = examination.of(training_rows.sources, [part.weight for part in trained])
    others = examination.of([rows.sources[0] for rows in evaluation], [1.0] * len(evaluation))
    # Without a source to train on, the data sets to evaluate on are examined by themselves.
    examined = first if trained else others
    examiner = examined.examiner
    held_out = held_out_rows(examiner.numbers, dataset.test_size, training.seed) if trained else []
    findings = examiner.findings(held_out, examined.unused_columns)
    if trained:
        imbalance = label_imbalance(*examined.labels, label_weights(training))
        findings += [
            finding for finding in (others.examiner.leak_from(first.examiner), imbalance) if finding is not None
        ]
    means = examiner.mean_tokens
    return DataFacts(
        rows=examiner.rows,
        all_rows=not examined.has_more,
        usable=examiner.usable,
        longest=max(first.examiner.longest, others.examiner.longest) or None,
        highest_id=examiner.highest_id or None,
        highest_id_row=examiner.highest_id_row or None,
        most_tokens=max(first.examiner.most_tokens, others.examiner.most_tokens) or None,
        mean_tokens=PairTokens(prompt=means[0], chosen=means[1], rejected=means[2]) if means else None,
        findings=findings,
        notes=[note for source in sources for note in describe_encoding(source.config.source, source.file)],
    )


@dataclass(frozen=True)
class _Examined:
    """What the first rows of sources showed. `labels` are the counts of RowExaminer times the sources' weights."""

    examiner: RowExaminer
    labels: tuple[float, float]
    has_more: bool
    unused_columns: tuple[str, ...]


@dataclass(frozen=True)
class _Examination:
    """Examines up to `max_rows` rows of each source, or those that can be read in `max_seconds`."""

    training: TrainingConfig
    encoder: PairEncoder | None
    max_rows: int
    max_seconds: float

    def of(self, sources: Sequence[PairRows], weights: Sequence[float]) -> _Examined:
        """Examine the first rows of sources with these weights. Raises DataError."""
        encoder = self.encoder
        examiner = encoder.row_examiner() if encoder else row_examiner(self.training.dataset.format.format_type)
        before, has_more, labels = 0, False, (0.0, 0.0)
        for source, weight in zip(sources, weights, strict=True):
            labeled, enough, deadline = (
                examiner.labels,
                examiner.rows + self.max_rows,
                time.monotonic() + self.max_seconds,
            )
            for _ in examine(numbered_from(before, source), examiner, partial(_measure, encoder=encoder)):
                if examiner.rows >= enough or time.monotonic() > deadline:
                    break
            # Reading one more row shows whether there are further rows.
            has_more |= next(source, None) is not None
            before += source.count
            true, false = (now - then for now, then in zip(examiner.labels, labeled, strict=True))
            labels = (labels[0] + weight * true, labels[1] + weight * false)
        return _Examined(examiner, labels, has_more, unused_columns(source.conversion for source in sources))


def _measure(pair: Pair, encoder: PairEncoder | None) -> tuple[None, Lengths | None, frozenset[FindingKind]]:
    if encoder is None:
        return None, None, frozenset()
    encoded = encoder.encode(pair)
    return None, encoded.lengths, encoded.text.finding_kinds
