"""Preview rows of a data set as they are stored, and keep stored rows until their pairs are made."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

from merlina.data.dataset import first_rows, rows_from
from merlina.data.previews.row_shortening import truncate_name, truncate_row
from merlina.data.readers.data_files import DataFile
from merlina.data.readers.files import Row
from merlina.data.readers.row_limit import RowLimit
from merlina.data.readers.sources import open_rows
from merlina.data.row_formats.conversion import conversion_of
from merlina.data.row_formats.registry import described
from merlina.errors import DataError
from merlina.schemas.datasets.config import DatasetConfig
from merlina.schemas.datasets.responses import DetectedFormat

_COLUMNS_SHOWN = 1000
# A row ends when the outcome of the next one is known.
_ROW_AND_NEXT = 2
_USUAL_LIMIT = RowLimit()


@dataclass(frozen=True)
class RawPreview:
    """Rows as JSON values, with the names of all their columns, and the number of the row that follows them."""

    samples: list[dict[str, Any]]
    columns: list[str]
    warnings: list[str]
    detected_format: DetectedFormat | None
    next_row: int | None


def preview_rows(
    config: DatasetConfig,
    file: DataFile | None,
    token: str | None,
    limit: int,
    row_limit: RowLimit = _USUAL_LIMIT,
    start: int = 1,
) -> RawPreview:
    """Return up to `limit` rows from number `start` on, each truncated to what a response may contain.

    Raises DataError.
    """
    config = config.training_parts[0].config
    rows = islice(open_rows(config.source, file, token, limit=row_limit), config.max_samples)
    first = first_rows(rows)
    shown = rows_from(start, chain(first, rows), config, file, row_limit)
    samples: list[dict[str, Any]] = []
    columns: dict[str, None] = {}
    for row in islice(shown, limit):
        samples.append(truncate_row(row))
        columns |= dict.fromkeys(row)
    if not samples:
        raise no_such_row(start)
    names = list(map(truncate_name, islice(columns, _COLUMNS_SHOWN)))
    hidden = len(columns) - len(names)
    warnings = [f"{hidden:,} more columns are not listed; {_COLUMNS_SHOWN:,} are"] if hidden else []
    next_row = None if next(shown, None) is None else start + len(samples)
    return RawPreview(samples, names, warnings, described(conversion_of(config, first).detected), next_row)


def no_such_row(number: int) -> DataError:
    """Return the error for a row number after the last row."""
    if number == 1:
        return DataError("The data set has no rows")
    return DataError(f"There is no row {number:,}: the data set has fewer rows, or max_samples is lower")


class PassingRows:
    """The last rows that were read, by number; `last` is the number of the last one.

    A pair does not contain the row that it was made from, and merged rows are read before their pair is made. At most
    `capacity` rows are kept.
    """

    def __init__(self) -> None:
        self.last = 0
        self.capacity = _ROW_AND_NEXT
        self._rows: dict[int, Row] = {}

    def watch(self, rows: Iterator[Row], start: int) -> Iterator[Row]:
        """Yield `rows`, of which the first has the number `start`, and keep the last ones."""
        for self.last, row in enumerate(rows, start):
            self._rows[self.last] = row
            if len(self._rows) > self.capacity:
                del self._rows[next(iter(self._rows))]
            yield row

    def take(self, first: int, last: int, limit: int) -> list[dict[str, Any]]:
        """Return up to `limit` rows of this range as a response may contain them, and drop the range."""
        taken = [self._rows.pop(number, None) for number in range(first, last + 1)]
        return [truncate_row(row) for row in taken if row is not None][:limit]
