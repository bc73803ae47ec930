"""Read rows from CSV and TSV: a header line, then cells separated by commas, semicolons, tabs or vertical bars."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any, TextIO

from merlina.data.readers.encodings import SET_ENCODING
from merlina.data.readers.row_limit import RowLimit
from merlina.data.readers.text_files import TextFile
from merlina.errors import DataError

_MAX_HEADER_BYTES = 1024**2
_SEPARATORS = ",;\t|"


def read_csv(file: TextFile, limit: RowLimit, start: int = 1, separator: str | None = None) -> Iterator[dict[str, Any]]:
    """Yield the rows from `start` on with text in all cells; a row with too few cells lacks its last columns.

    Without a `separator`, the header determines it. Raises DataError, which names the line, if the file is not valid.
    """
    with _lines_of_cells(file, limit, separator) as lines:
        names = next(lines, None)
        if names is None:
            return
        limit.check_columns(len(names), "the header")
        if len(set(names)) < len(names):
            raise DataError(f"The header names a column twice: {', '.join(names)}")
        for cells in islice(lines, start - 1, None):
            if len(cells) > len(names):
                raise DataError(f"line {lines.number} has more cells than the header has columns")
            yield dict(zip(names, cells, strict=False))


def count_csv(file: TextFile, limit: RowLimit, separator: str | None = None) -> int:
    """Return the number of rows. Raises DataError, which names the line, if the file is not valid."""
    with _lines_of_cells(file, limit, separator) as lines:
        return max(0, sum(1 for _ in lines) - 1)


class _Lines:
    """Iterator over lines as lists of cells, without blank lines; `number` is that of the last line read."""

    def __init__(self, text: _BoundedText, separator: str) -> None:
        self._text = text
        self._reader: Any = csv.reader(text, strict=True, delimiter=separator)

    def __iter__(self) -> Iterator[list[str]]:
        return self

    def __next__(self) -> list[str]:
        while True:
            self._text.begin_row()
            if cells := next(self._reader):
                return list(cells)

    @property
    def number(self) -> int:
        return int(self._reader.line_num)


class _BoundedText:
    """Lines of a file for csv.reader, which joins lines into one row while a quotation is open.

    Raises DataError once the lines of one row exceed the limit.
    """

    def __init__(self, file: TextIO, limit: RowLimit) -> None:
        self._file = file
        self._limit = limit
        self._row_size = 0
        self._number = 0
        self._row_number = 1

    def begin_row(self) -> None:
        self._row_size = 0
        self._row_number = self._number + 1

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._file.readline(self._limit.size + 1)
        if not line:
            raise StopIteration
        self._number += 1
        self._row_size += len(line) if line.isascii() else len(line.encode())
        if self._row_size > self._limit.size:
            raise self._limit.exceeded(f"line {self._row_number}")
        return line


@contextmanager
def _lines_of_cells(file: TextFile, limit: RowLimit, separator: str | None) -> Iterator[_Lines]:
    # The default limit of csv for a cell is smaller than the limit for a row.
    csv.field_size_limit(limit.size)
    lines: _Lines | None = None
    try:
        separator = separator or _separator(file)
        with _opened(file) as text:
            lines = _Lines(_BoundedText(text, limit), separator)
            yield lines
    except csv.Error as error:
        raise DataError(f"line {lines.number if lines else 1} is not valid CSV: {error}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{_describe_undecodable(file, limit)}. {SET_ENCODING}") from error


def _opened(file: TextFile) -> TextIO:
    return io.TextIOWrapper(file.open(), encoding="utf-8", newline="")


def _describe_undecodable(file: TextFile, limit: RowLimit) -> str:
    """Return a message with the first line that is not UTF-8. The reader decodes ahead and cannot name it."""
    with file.open() as stream:
        for number, line in enumerate(iter(lambda: stream.readline(limit.size), b""), start=1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                return f"line {number} is not UTF-8 text ({error.reason} at byte {error.start + 1} of it)"
    return "The file is not UTF-8 text"


def _separator(file: TextFile) -> str:
    """Return a comma if the header contains one, otherwise its most frequent separator."""
    with _opened(file) as text:
        header = text.readline(_MAX_HEADER_BYTES)
    return "," if "," in header else max(_SEPARATORS, key=header.count)
