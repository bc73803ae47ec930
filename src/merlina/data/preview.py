"""Preview the first rows of a data set, as stored and as formatted text, without reading the rest."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from merlina.data.chat_formats import formatter
from merlina.data.conversation import Pair, SkippedRow
from merlina.data.dataset import first_rows, held_out_rows, read_pairs
from merlina.data.examination import BatchConversion, examine_each, one_by_one
from merlina.data.readers.row_limit import RowLimit
from merlina.data.readers.sources import open_rows
from merlina.data.row_examiner import RowExaminer
from merlina.data.row_formats.conversion import conversion_of
from merlina.data.row_formats.registry import described
from merlina.data.truncation import truncate_name, truncate_row
from merlina.errors import DataError
from merlina.schemas.datasets import (
    DataFinding,
    DatasetConfig,
    DatasetFormat,
    DetectedFormat,
    FindingKind,
    answers_needed,
)

_MAX_ROWS_EXAMINED = 500
_EXAMINE_SECONDS = 0.2
_WARNINGS_SHOWN = 20
_COLUMNS_SHOWN = 1000
_TIMEOUT_SECONDS = 10.0
_USUAL_LIMIT = RowLimit()
PREVIEW_SEED = 42  # default of TrainingConfig.seed


@dataclass(frozen=True)
class RawPreview:
    """First rows as JSON values, with the names of all their columns."""

    samples: list[dict[str, Any]]
    columns: list[str]
    warnings: list[str]
    detected_format: DetectedFormat | None


def preview_rows(
    config: DatasetConfig, file: Path | None, token: str | None, limit: int, row_limit: RowLimit = _USUAL_LIMIT
) -> RawPreview:
    """Return up to `limit` rows, each truncated to what a response may contain. Raises DataError."""
    samples: list[dict[str, Any]] = []
    columns: dict[str, None] = {}
    max_rows = min(limit, config.max_samples or limit)
    rows = islice(open_rows(config.source, file, token, limit=row_limit), max_rows)
    first = first_rows(rows)
    for row in chain(first, rows):
        samples.append(truncate_row(row))
        columns |= dict.fromkeys(row)
    if not samples:
        raise DataError("The data set has no rows")
    names = list(map(truncate_name, islice(columns, _COLUMNS_SHOWN)))
    hidden = len(columns) - len(names)
    warnings = [f"{hidden:,} more columns are not listed; {_COLUMNS_SHOWN:,} are"] if hidden else []
    return RawPreview(samples, names, warnings, described(conversion_of(config, first).detected))


@dataclass(frozen=True)
class FormattedPreview:
    """Formatted samples, each with the number of its `row`; `warnings` name rows that cannot be used."""

    samples: list[dict[str, Any]]
    warnings: list[str]
    findings: list[DataFinding]
    rows_examined: int
    detected_format: DetectedFormat | None


SampleBuilder = BatchConversion[Callable[[], dict[str, Any]]]
"""Return for each pair a function that builds its sample, since only a few samples are shown."""


def preview_formatted(
    config: DatasetConfig,
    file: Path | None,
    token: str | None,
    show: SampleBuilder,
    make_examiner: Callable[[Sequence[str]], RowExaminer],
    limit: int,
    row_limit: RowLimit = _USUAL_LIMIT,
) -> FormattedPreview:
    """Return up to `limit` samples, with findings on those and on further rows, for up to 0.2 s. Raises DataError."""
    pairs = read_pairs(config, file, token, answers_needed=answers_needed(config.training_mode), limit=row_limit)
    examiner = make_examiner(pairs.conversion.unused_columns)
    samples: list[dict[str, Any]] = []
    warnings: list[str] = []
    enough_at = time.monotonic() + _EXAMINE_SECONDS
    give_up_at = time.monotonic() + _TIMEOUT_SECONDS
    for outcome in examine_each(islice(pairs, _MAX_ROWS_EXAMINED), examiner, show):
        if not isinstance(outcome, SkippedRow):
            pair, make_sample = outcome
            samples += [{**make_sample(), "row": pair.number}] if len(samples) < limit else []
        elif len(samples) < limit:
            warnings.append(f"row {outcome.number} cannot be used: {outcome.reason}")
        if time.monotonic() > (enough_at if len(samples) == limit else give_up_at):
            break
    if not examiner.rows:
        raise DataError("The data set has no rows")
    held_out = held_out_rows(examiner.numbers, config.test_size, PREVIEW_SEED)
    return FormattedPreview(
        samples,
        warnings[:_WARNINGS_SHOWN],
        examiner.findings(held_out),
        examiner.rows,
        described(pairs.conversion.detected),
    )


def text_sample_builder(spec: DatasetFormat) -> SampleBuilder:
    """Return the builder of samples without token counts, for formats that need no tokenizer."""
    render = formatter(spec, None)

    def show(pair: Pair) -> tuple[Callable[[], dict[str, Any]], None, frozenset[FindingKind]]:
        text = render(pair)
        return lambda: truncate_row(text.sample), None, text.remarks

    return one_by_one(show)
