"""Read the rows of one or several sources as pairs and skipped rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, islice
from typing import NamedTuple

from merlina.data.cleaning import Cleaning
from merlina.data.columns import check_mapping
from merlina.data.conversation import Pair, SkippedRow
from merlina.data.readers.data_files import DataFile
from merlina.data.readers.files import Row
from merlina.data.readers.row_limit import RowLimit, approximate_size
from merlina.data.readers.sources import open_rows
from merlina.data.row_formats.conversion import RowConversion, conversion_of
from merlina.domain.conversion_rules import CURRENT_RULES
from merlina.errors import DataError
from merlina.schemas.datasets.config import AnswersNeeded, DatasetConfig, DatasetPart

_ROWS_WITH_ALL_COLUMNS = 20
_BYTES_HELD_FOR_COLUMNS = 16 * 1024**2
_USUAL_LIMIT = RowLimit()
# More rows than data sets have for one prompt: two in HelpSteer, for example.
MOST_MERGED_ROWS = 100

Watch = Callable[[Iterator[Row], int], Iterator[Row]]
"""Receives the rows that are converted and the number of the first of them, and yields the same rows."""


class PairRows(Iterator[Pair | SkippedRow]):
    """The rows of a data set as pairs and skipped rows, with the `conversion` that they pass.

    `count` is the number of the last row that was read so far. With `splits_pairs`, each answer of a pair is a pair of
    its own, since all pairs of a run have equally many answers: it is true for unpaired answers and for what is read
    together with them. Errors begin with `error_prefix`.
    """

    def __init__(
        self, conversion: RowConversion, rows: Iterable[Row], cleaning: Cleaning, first: int = 1, start: int = 1
    ) -> None:
        """`first` is the number of the first of `rows`; outcomes of rows before `start` are omitted."""
        self.conversion = conversion
        self.count = first - 1
        outcomes = cleaning.outcomes(conversion.outcomes(self._counted(rows), first))
        self.splits_pairs = conversion.has_unpaired
        self.error_prefix = ""
        self._outcomes = self._split(outcomes if first == start else _from_row(start, outcomes))

    def __next__(self) -> Pair | SkippedRow:
        try:
            return next(self._outcomes)
        except DataError as error:
            raise _prefixed(error, self.error_prefix) from error

    def _counted(self, rows: Iterable[Row]) -> Iterator[Row]:
        for row in rows:
            self.count += 1
            yield row

    def _split(self, outcomes: Iterable[Pair | SkippedRow]) -> Iterator[Pair | SkippedRow]:
        for outcome in outcomes:
            if isinstance(outcome, SkippedRow) or not self.splits_pairs or len(outcome.answers) == 1:
                yield outcome
            else:
                yield replace(outcome, rejected=None)
                yield replace(outcome, chosen=None, rows=0)


class ChainedRows(Iterator[Pair | SkippedRow]):
    """The rows of several sources, one source after the other; row numbers continue from source to source.

    `begins[i]` is the number of rows in all sources before source i, of those begun so far. Example: with 100 rows in
    the first source, the first row of the second has the number 101, and `begins` is [0, 100].
    """

    def __init__(self, sources: Sequence[PairRows]) -> None:
        self.sources = sources
        self.conversions = [source.conversion for source in sources]
        self.begins: list[int] = []
        self._outcomes = self._numbered(sources)

    def __next__(self) -> Pair | SkippedRow:
        return next(self._outcomes)

    def _numbered(self, sources: Sequence[PairRows]) -> Iterator[Pair | SkippedRow]:
        before = 0
        for source in sources:
            self.begins.append(before)
            yield from numbered_from(before, source)
            before += source.count


def unused_columns(conversions: Iterable[RowConversion]) -> tuple[str, ...]:
    """Return the columns of any source that contain text that is not trained on."""
    return tuple(dict.fromkeys(name for each in conversions for name in each.unused_columns))


def numbered_from(before: int, rows: Iterable[Pair | SkippedRow]) -> Iterator[Pair | SkippedRow]:
    """Yield the rows of a source with numbers that continue after `before` rows of earlier sources."""
    for row in rows:
        yield replace(row, number=before + row.number) if before else row


class LocatedSource(NamedTuple):
    """A source as a data set of its own, with its file, None for the Hub. Errors begin with `error_prefix`."""

    config: DatasetConfig
    file: DataFile | None
    error_prefix: str = ""


def located(part: DatasetPart, file: DataFile | None) -> LocatedSource:
    """Return a source with its file. Its errors begin with its field, unless it is the only one to train on."""
    return LocatedSource(part.config, file, "" if part.location == "source" else f"dataset.{part.location}: ")


def _prefixed(error: DataError, prefix: str) -> DataError:
    return DataError(f"{prefix}{error.message}") if prefix else error


def read_sources(
    training: Sequence[LocatedSource],
    evaluation: Sequence[LocatedSource],
    token: str | None,
    *,
    answers_needed: AnswersNeeded = "both",
    download: bool = False,
    limit: RowLimit = _USUAL_LIMIT,
    rules: int = CURRENT_RULES,
) -> tuple[ChainedRows, list[ChainedRows]]:
    """Return the rows of all sources to train on, and those of each data set to evaluate on.

    With `download`, data sets of the Hub that are read in whole are cached first. The sources to train on share their
    duplicates: `drop_duplicates` also drops a row that repeats one of an earlier source. `rules` is the version of the
    rules by which rows become pairs. Raises DataError as `read_pairs`.
    """

    def opened(source: LocatedSource, cleaning: Cleaning) -> PairRows:
        config, file, error_prefix = source
        caches = download and config.max_samples is None
        try:
            rows = read_pairs(
                config,
                file,
                token,
                answers_needed=answers_needed,
                download=caches,
                limit=limit,
                rules=rules,
                cleaning=cleaning,
            )
        except DataError as error:
            raise _prefixed(error, error_prefix) from error
        rows.error_prefix = error_prefix
        return rows

    shared = Cleaning(training[0].config) if training else None
    trained = [opened(source, shared or Cleaning(source.config)) for source in training]
    evaluated = [opened(source, Cleaning(source.config)) for source in evaluation]
    splits = any(rows.splits_pairs for rows in (*trained, *evaluated))
    for rows in (*trained, *evaluated):
        rows.splits_pairs = splits
    return ChainedRows(trained), [ChainedRows([rows]) for rows in evaluated]


def read_pairs(
    config: DatasetConfig,
    file: DataFile | None,
    token: str | None,
    *,
    answers_needed: AnswersNeeded = "both",
    download: bool = False,
    limit: RowLimit = _USUAL_LIMIT,
    rules: int = CURRENT_RULES,
    start: int = 1,
    watch: Watch | None = None,
    cleaning: Cleaning | None = None,
) -> PairRows:
    """Return at most `max_samples` rows as pairs or as SkippedRows with the reason; the first are read at once.

    Pairs have the answers that are needed. With `download`, a Hub data set is cached first. With `start`, the first
    outcome is that of this row, and equal to its outcome in a run. Sources that are read together share their
    `cleaning`. Raises DataError if the first rows cannot be read, or if `column_mapping` names a column that none of
    them has.
    """
    rows = islice(open_rows(config.source, file, token, download=download, limit=limit), config.max_samples)
    first = first_rows(rows)
    check_mapping(first, config.column_mapping)
    conversion = conversion_of(config, first, answers_needed, rules)
    begin = _first_converted(conversion, start)
    remaining = rows_from(begin, chain(first, rows), config, file, limit)
    watched = watch(remaining, begin) if watch else remaining
    return PairRows(conversion, watched, cleaning or Cleaning(config), begin, start)


def rows_from(
    start: int, rows: Iterator[Row], config: DatasetConfig, file: DataFile | None, limit: RowLimit
) -> Iterator[Row]:
    """Return the rows from number `start` on, given all `rows`.

    A file is opened again, because its reader skips rows without parsing them. A stream from the Hub continues.
    """
    if file is None or start == 1:
        return islice(rows, start - 1, None)
    count = None if config.max_samples is None else max(0, config.max_samples - start + 1)
    return islice(open_rows(config.source, file, None, limit=limit, start=start), count)


def first_rows(rows: Iterator[Row]) -> list[Row]:
    """Take the first 20 rows, in which every column should occur, or fewer if they take more than 16 MiB."""
    first: list[Row] = []
    bytes_left = _BYTES_HELD_FOR_COLUMNS
    for row in islice(rows, _ROWS_WITH_ALL_COLUMNS):
        first.append(row)
        bytes_left -= approximate_size(row, bytes_left)
        if bytes_left <= 0:
            break
    return first


def _first_converted(conversion: RowConversion, start: int) -> int:
    """Return the row at which conversion must begin so that the outcomes from row `start` on are those of a run."""
    if conversion.config.drop_duplicates:
        return 1
    return max(1, start - MOST_MERGED_ROWS) if conversion.merges_adjacent else start


def _from_row(start: int, outcomes: Iterable[Pair | SkippedRow]) -> Iterator[Pair | SkippedRow]:
    """Yield the outcomes of row `start`, including those of merged rows that precede it, and of later rows."""
    kept: int | None = None
    for outcome in outcomes:
        # A row's pairs after the first count no rows of their own.
        if outcome.number == kept or outcome.number + max(outcome.rows, 1) > start:
            kept = outcome.number
            yield outcome
