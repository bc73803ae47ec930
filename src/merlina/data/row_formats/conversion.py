"""Conversion of a data set's rows to pairs: the format is detected once, then each row is converted by it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from merlina.data.columns import map_columns
from merlina.data.conversation import Pair, SkippedRow, UnusableRowError
from merlina.data.pairs import to_demonstration, to_pair
from merlina.data.readers.files import Row
from merlina.data.row_formats.conversations import STANDARD, is_standard
from merlina.data.row_formats.media import refuse_media
from merlina.data.row_formats.ranked_answers import RankedAnswers
from merlina.data.row_formats.registry import ROW_FORMATS, WITH_ONE_ANSWER, detect, format_of
from merlina.data.row_formats.text_values import parsed, parsed_if_possible
from merlina.data.row_formats.unpaired import is_unpaired, to_unpaired
from merlina.data.row_formats.unused_columns import UnusedColumns
from merlina.domain.conversion_rules import CURRENT_RULES
from merlina.schemas.datasets.config import AnswersNeeded, DatasetConfig, FindingKind, RowFormat

_NO_FINDING_KINDS: frozenset[FindingKind] = frozenset()
_WITHOUT_LABEL = WITH_ONE_ANSWER - {"unpaired"}
_PARSED: frozenset[FindingKind] = frozenset({"parsed_from_text"})


class _Converted(NamedTuple):
    """A converted row or adjacent rows of one prompt: `number` of the first, `rows` of them."""

    number: int
    content: Row | RankedAnswers
    finding_kinds: frozenset[FindingKind]
    rows: int = 1


@dataclass(frozen=True)
class RowConversion:
    """How the rows of a data set become pairs.

    `detected` is the format that the first rows have, None if it is unknown; `row_format` is the one that is used.
    `answers_needed` are those that the training method needs. `unused` has examined the first `num_first` rows, and
    examines those that are converted. `rules` is the version of the rules by which standard rows become pairs.
    """

    config: DatasetConfig
    answers_needed: AnswersNeeded
    detected: RowFormat | None
    row_format: RowFormat
    unused: UnusedColumns
    num_first: int
    rules: int

    @property
    def unused_columns(self) -> tuple[str, ...]:
        """Columns with text that is not trained on, in the rows that were read so far."""
        return self.unused.names

    @property
    def merges_adjacent(self) -> bool:
        """Whether adjacent rows with the same prompt are converted as one."""
        return ROW_FORMATS[self.row_format].merges_adjacent

    @property
    def has_unpaired(self) -> bool:
        """Whether the rows are unpaired answers that the method trains on."""
        return self.row_format == "unpaired" and self.answers_needed == "any"

    def outcomes(self, rows: Iterable[Row], start: int = 1) -> Iterator[Pair | SkippedRow]:
        """Yield the pairs of each row, or the row with the reason for which it is skipped.

        `start` is the number of the first of `rows`.
        """
        converted = self._converted(rows, start)
        for item in _merged(converted) if self.merges_adjacent else converted:
            if isinstance(item, SkippedRow):
                yield item
            elif isinstance(item.content, RankedAnswers):
                yield from self._ranked_pairs(item, item.content)
            else:
                yield self._pair(item.content, item, item.rows)

    def _converted(self, rows: Iterable[Row], start: int) -> Iterator[_Converted | SkippedRow]:
        """Yield each row as a standard row or as ranked answers, or the reason for which it is skipped."""
        mapping = self.config.column_mapping
        read = ROW_FORMATS[self.row_format].columns
        columns = read | STANDARD.columns
        for number, stored in enumerate(rows, start):
            try:
                mapped = map_columns(stored, mapping)
                refuse_media(mapped)
                row = parsed(mapped, columns)
                finding_kinds = _NO_FINDING_KINDS if row is mapped else _PARSED
                content = self._convert(row)
                if number > self.num_first:
                    self.unused.add(row, STANDARD.columns if content is row else read)
                yield _Converted(number, content, finding_kinds)
            except UnusableRowError as error:
                yield SkippedRow(number, error.message, error.kind)

    def _convert(self, row: Row) -> Row | RankedAnswers:
        """Convert a row by the format; one that does not fit a detected format may still be a standard row."""
        is_detected = self.config.row_format is None
        if is_detected and self.row_format in _WITHOUT_LABEL and ROW_FORMATS["unpaired"].fits(row):
            raise self._other_format("unpaired")  # its answer may be a bad one
        try:
            return ROW_FORMATS[self.row_format].convert(row)
        except UnusableRowError as error:
            if is_detected and is_standard(row):
                return row
            raise self._explained(error, row) from error

    def _explained(self, error: UnusableRowError, row: Row) -> UnusableRowError:
        """Return the error of a row, or another one if the row has another format than that of the first rows."""
        own = format_of(parsed_if_possible(row)) if self.config.row_format is None else None
        # A row without its label still has the format that it had with it.
        is_without_label = self.row_format == "unpaired" and own in _WITHOUT_LABEL
        return error if own in (None, self.row_format) or is_without_label else self._other_format(own)

    def _other_format(self, own: RowFormat) -> UnusableRowError:
        return UnusableRowError(
            f"it has the format {own}, but the data set is read as {self.row_format}, as its first rows are; put the "
            "rows of each format into a file of its own and list the files in sources, or set row_format to "
            f"{own} if most rows have it"
        )

    def _ranked_pairs(self, item: _Converted, content: RankedAnswers) -> Iterator[Pair | SkippedRow]:
        try:
            rows = [content.best()] if self.answers_needed == "chosen" else content.pairs(self.config.pairs_per_row)
        except UnusableRowError as error:
            yield SkippedRow(item.number, error.message, error.kind, item.rows)
            return
        for index, row in enumerate(rows):
            yield self._pair(row, item, item.rows if index == 0 else 0)

    def _pair(self, row: Row, item: _Converted, rows: int) -> Pair | SkippedRow:
        try:
            pair = self._converted_pair(row)
        except UnusableRowError as given:
            # A standard row is converted only here. What other formats were converted to has no columns of its own.
            error = self._explained(given, row) if self.row_format == "standard" else given
            return SkippedRow(item.number, error.message, error.kind, rows)
        return Pair(
            pair.prompt,
            pair.chosen,
            pair.rejected,
            pair.tools,
            pair.template_arguments,
            item.number,
            item.finding_kinds,
            rows,
        )

    def _converted_pair(self, row: Row) -> Pair:
        """Return the pair of a standard row. Raises UnusableRowError if it lacks an answer that the method needs."""
        if self.row_format == "unpaired" and is_unpaired(row):
            return to_unpaired(row, self.answers_needed)
        if self.answers_needed == "chosen":
            return to_demonstration(row)
        if "rejected" not in row and self.row_format != "standard":
            title = ROW_FORMATS[self.row_format].title
            raise UnusableRowError(
                f"there is one answer and none that is rejected ({title}); training_mode sft needs none"
            )
        return to_pair(row, self.rules)


def conversion_of(
    config: DatasetConfig,
    first: Sequence[Row],
    answers_needed: AnswersNeeded = "both",
    rules: int = CURRENT_RULES,
) -> RowConversion:
    """Return the conversion for a data set with these first rows, from which the format is detected."""
    rows = [parsed_if_possible(map_columns(row, config.column_mapping)) for row in first]
    detected = detect(rows)
    row_format = config.row_format or detected or "standard"
    unused = UnusedColumns()
    for row in rows:
        unused.add(row, ROW_FORMATS[row_format].columns)
    return RowConversion(config, answers_needed, detected, row_format, unused, len(rows), rules)


def _merged(items: Iterable[_Converted | SkippedRow]) -> Iterator[_Converted | SkippedRow]:
    """Merge adjacent rows with answers to the same question; other rows pass between them."""
    group: list[tuple[_Converted, RankedAnswers]] = []
    for item in items:
        if isinstance(item, SkippedRow) or not isinstance(item.content, RankedAnswers):
            yield item
            continue
        if group and item.content.question != group[0][1].question:
            yield _joined(group)
            group = []
        group.append((item, item.content))
    if group:
        yield _joined(group)


def _joined(group: Sequence[tuple[_Converted, RankedAnswers]]) -> _Converted:
    """Return one item with the answers of all rows."""
    first, content = group[0]
    answers = tuple(answer for _, each in group for answer in each.answers)
    finding_kinds = _NO_FINDING_KINDS.union(*(item.finding_kinds for item, _ in group))
    return _Converted(first.number, RankedAnswers(content.question, answers), finding_kinds, len(group))
