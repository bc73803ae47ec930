"""Preview rows of a data set as formatted text with their findings, from any row on."""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, get_args

from merlina.data.conversation import Pair, SkippedRow, UnusableRowError
from merlina.data.dataset import MOST_MERGED_ROWS, read_pairs
from merlina.data.digests import pair_digest, prompt_digest
from merlina.data.findings.examination import BatchConversion, Converted, examine_each, one_by_one
from merlina.data.findings.label_balance import label_imbalance, preview_weights
from merlina.data.findings.length_statistics import character_length, length_histogram
from merlina.data.findings.row_examiner import Lengths, RowExaminer
from merlina.data.previews.row_shortening import truncate_row
from merlina.data.previews.stored_rows import PassingRows, no_such_row
from merlina.data.readers.data_files import DataFile
from merlina.data.readers.row_limit import RowLimit
from merlina.data.rendering.chat_formats import formatter
from merlina.data.row_formats.registry import described
from merlina.data.split import held_out_rows
from merlina.schemas.datasets.config import (
    DatasetConfig,
    DatasetFormat,
    FindingKind,
    RowFilter,
    RowFindingKind,
    answers_needed,
)
from merlina.schemas.datasets.responses import DataFinding, DetectedFormat, LengthHistogram, RowPreview

_MAX_ROWS_EXAMINED = 500
_EXAMINE_SECONDS = 0.2
_TIMEOUT_SECONDS = 10.0
_SEARCH_SECONDS = 3.0
_WARNINGS_SHOWN = 20
_MERGED_ROWS_SHOWN = 5
_USUAL_LIMIT = RowLimit()
PREVIEW_SEED = 42  # the default of TrainingConfig.seed
_ROW_KINDS: tuple[RowFindingKind, ...] = get_args(RowFindingKind)


@dataclass(frozen=True)
class FormattedPreview:
    """Formatted samples, each with the number of its `row`; `warnings` name rows that cannot be used.

    `rows` are the rows that are shown, with the findings on each. `next_row` is None at the end of the data set.
    """

    samples: list[dict[str, Any]]
    warnings: list[str]
    findings: list[DataFinding]
    rows_examined: int
    detected_format: DetectedFormat | None
    rows: list[RowPreview]
    next_row: int | None
    lengths: LengthHistogram | None


SampleBuilder = BatchConversion[Callable[[], dict[str, Any]]]
"""Return for each pair a function that builds its sample, since only a few samples are shown."""


@dataclass(frozen=True)
class RowSelection:
    """The rows to show: up to `limit` from number `start` on, or those of them that have the findings of `only`."""

    limit: int
    start: int = 1
    only: RowFilter | None = None

    def matches(self, kinds: Sequence[RowFindingKind]) -> bool:
        """Return whether a row with these kinds of findings is shown."""
        if self.only is None:
            return True
        # Every row of a CSV file with conversations was parsed from text.
        return any(kind != "parsed_from_text" if self.only == "findings" else kind == self.only for kind in kinds)


def preview_formatted(
    config: DatasetConfig,
    file: DataFile | None,
    token: str | None,
    show: SampleBuilder,
    make_examiner: Callable[[], RowExaminer],
    selection: RowSelection,
    row_limit: RowLimit = _USUAL_LIMIT,
) -> FormattedPreview:
    """Return the samples of the selected rows of the first source, with findings on those and on further rows.

    Further rows are examined for up to 0.2 s. A search for rows with findings ends after 3 s, and any other preview
    after 10 s, even with fewer rows than `selection` asks for. Raises DataError.
    """
    config = config.training_parts[0].config
    passing = PassingRows()
    needed = answers_needed(config.training_mode)
    pairs = read_pairs(
        config, file, token, answers_needed=needed, limit=row_limit, start=selection.start, watch=passing.watch
    )
    if pairs.conversion.merges_adjacent:
        passing.capacity = MOST_MERGED_ROWS
    examiner = make_examiner()
    shown = _ShownRows(selection, examiner, passing)
    outcomes = pairs if selection.only else islice(pairs, _MAX_ROWS_EXAMINED)
    for outcome in examine_each(outcomes, examiner, _with_lengths(show)):
        shown.add(outcome)
        if shown.is_enough():
            break
    shown.close_row()
    if not examiner.rows:
        raise no_such_row(selection.start)
    held_out = held_out_rows(examiner.numbers, config.test_size, PREVIEW_SEED)
    imbalance = label_imbalance(*examiner.labels, preview_weights(config.training_mode))
    return FormattedPreview(
        shown.samples,
        shown.warnings[:_WARNINGS_SHOWN],
        [*examiner.findings(held_out, pairs.conversion.unused_columns), *filter(None, [imbalance])],
        examiner.rows,
        described(pairs.conversion.detected),
        sorted(shown.rows, key=lambda row: row.row),
        shown.next_row(lambda: next(pairs, None) is not None),
        length_histogram(shown.lengths, "tokens" if examiner.mean_tokens else "characters"),
    )


_Made = tuple[Callable[[], dict[str, Any]], int]
"""The function that builds a pair's sample, and the pair's length."""


def _with_lengths(show: SampleBuilder) -> BatchConversion[_Made]:
    """Return the conversion that also yields the length of each pair, in tokens if it has tokens."""

    def convert(pairs: Sequence[Pair]) -> Iterator[Converted[_Made] | UnusableRowError]:
        for pair, converted in zip(pairs, show(pairs), strict=True):
            if isinstance(converted, UnusableRowError):
                yield converted
            else:
                make_sample, lengths, finding_kinds = converted
                length = character_length(pair) if lengths is None else lengths.untruncated
                yield (make_sample, length), lengths, finding_kinds

    return convert


@dataclass
class _OpenRow:
    """A row of which further pairs may follow."""

    number: int
    last: int
    pairs: int = 0
    builders: list[Callable[[], dict[str, Any]]] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    kinds: set[FindingKind] = field(default_factory=set)


class _ShownRows:
    """Collects the outcomes of rows, and selects those to show."""

    def __init__(self, selection: RowSelection, examiner: RowExaminer, passing: PassingRows) -> None:
        self.samples: list[dict[str, Any]] = []
        self.warnings: list[str] = []
        self.rows: list[RowPreview] = []
        self.lengths = array("q")
        self._selection = selection
        self._examiner = examiner
        self._passing = passing
        self._digests: set[int] = set()
        self._open: _OpenRow | None = None
        self._last_closed = 0
        self._began: float | None = None

    def add(self, outcome: tuple[Pair, _Made] | SkippedRow) -> None:
        """Add a pair with its conversion, or a skipped row; the pairs of a row follow one another."""
        if self._began is None:
            self._began = time.monotonic()
        row = outcome if isinstance(outcome, SkippedRow) else outcome[0]
        if self._open is None or self._open.number != row.number:
            self.close_row()
            self._open = _OpenRow(row.number, row.number + max(row.rows, 1) - 1)
        if isinstance(outcome, SkippedRow):
            self._open.reasons.append(outcome.reason)
        else:
            self._add_pair(self._open, *outcome)
        self._open.kinds.update(self._examiner.kinds_of(row.number))

    def _add_pair(self, row: _OpenRow, pair: Pair, made: _Made) -> None:
        make_sample, length = made
        self.lengths.append(length)
        row.pairs += 1
        if len(row.builders) < self._selection.limit:
            row.builders.append(make_sample)
        digest = pair_digest(pair, prompt_digest(pair))
        if digest in self._digests:
            row.kinds.add("duplicates")
        self._digests.add(digest)

    def is_enough(self) -> bool:
        """Return whether enough rows are shown or examined."""
        seconds = 0.0 if self._began is None else time.monotonic() - self._began
        if self._selection.only:
            return self._is_full or seconds > _SEARCH_SECONDS
        has_samples = len(self.samples) + self._open_samples >= self._selection.limit
        return seconds > (_EXAMINE_SECONDS if has_samples else _TIMEOUT_SECONDS)

    @property
    def _is_full(self) -> bool:
        return max(len(self.rows), len(self.samples)) >= self._selection.limit

    @property
    def _open_samples(self) -> int:
        return len(self._open.builders) if self._open else 0

    def close_row(self) -> None:
        """Show the row of the last outcomes if it is selected."""
        row, self._open = self._open, None
        if row is None:
            return
        self._last_closed = max(self._last_closed, row.last)
        kinds = [kind for kind in _ROW_KINDS if kind in row.kinds]
        if self._selection.matches(kinds):
            self._show(row, kinds)

    def _show(self, row: _OpenRow, kinds: list[RowFindingKind]) -> None:
        missing = self._selection.limit - len(self.samples)
        # A row with more pairs than fit is the first of the next response.
        if not self._is_full and (len(row.builders) <= missing or not self.rows):
            self.rows.append(self._row_preview(row, kinds))
        if missing > 0:
            self.warnings += [f"row {row.number} cannot be used: {reason}" for reason in row.reasons]
            self.samples += [{**make_sample(), "row": row.number} for make_sample in row.builders[:missing]]

    def _row_preview(self, row: _OpenRow, kinds: list[RowFindingKind]) -> RowPreview:
        return RowPreview(
            row=row.number,
            last_row=row.last,
            stored=self._passing.take(row.number, row.last, _MERGED_ROWS_SHOWN),
            pairs=row.pairs,
            findings=kinds,
            reason=row.reasons[0] if row.reasons and not row.pairs else None,
        )

    def next_row(self, has_more: Callable[[], bool]) -> int | None:
        """Return the number of the row that follows the shown ones, or the examined ones if a search found fewer."""
        is_search = self._selection.only is not None and not self._is_full
        last = self._last_closed if is_search or not self.rows else max(row.last_row for row in self.rows)
        return last + 1 if last < self._passing.last or has_more() else None


def text_sample_builder(spec: DatasetFormat) -> SampleBuilder:
    """Return the builder of samples without token counts, for formats that need no tokenizer."""
    render = formatter(spec, None)

    def show(pair: Pair) -> tuple[Callable[[], dict[str, Any]], Lengths | None, frozenset[FindingKind]]:
        text = render(pair)
        return lambda: truncate_row(text.sample), None, text.finding_kinds

    return one_by_one(show)
