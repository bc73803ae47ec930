"""Rows out of CSV: UTF-8 with a header line, separated by commas, or by semicolons, tabs or bars."""

from __future__ import annotations

import codecs
import csv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from merlina.errors import DataError

_LONGEST_CELL = 64 * 1024**2
_LONGEST_HEADER = 1024**2
_SEPARATORS = ",;\t|"


def read_csv(path: Path) -> Iterator[dict[str, Any]]:
    """Cells are text; a row that ends early lacks its last columns. Raises DataError with the line."""
    with _lines_of_cells(path) as lines:
        names = next(lines, None)
        if names is None:
            return
        if len(set(names)) < len(names):
            raise DataError(f"the header names a column twice: {', '.join(names)}")
        for cells in lines:
            if len(cells) > len(names):
                raise DataError(f"line {lines.number} has more cells than the header has columns")
            yield dict(zip(names, cells, strict=False))


def count_csv(path: Path) -> int:
    with _lines_of_cells(path) as lines:
        return max(0, sum(1 for _ in lines) - 1)


class _Lines:
    """Lines as lists of cells, blank ones left out; `number` is that of the last line read."""

    def __init__(self, reader: Any) -> None:
        self._reader = reader

    def __iter__(self) -> Iterator[list[str]]:
        return self

    def __next__(self) -> list[str]:
        while not (cells := next(self._reader)):
            continue
        return list(cells)

    @property
    def number(self) -> int:
        return int(self._reader.line_num)


@contextmanager
def _lines_of_cells(path: Path) -> Iterator[_Lines]:
    csv.field_size_limit(_LONGEST_CELL)
    with path.open(encoding="utf-8-sig", newline="") as file:
        lines = _Lines(iter(()))
        try:
            header = file.readline(_LONGEST_HEADER)
            file.seek(0)
            lines = _Lines(csv.reader(file, strict=True, delimiter=_separator(header)))
            yield lines
        except csv.Error as error:
            raise DataError(f"line {lines.number} is not valid CSV: {error}") from error
        except UnicodeDecodeError as error:
            raise DataError(_where_it_is_no_text(path)) from error


def _where_it_is_no_text(path: Path) -> str:
    """The line that can't be decoded, which the reader, reading ahead, doesn't know."""
    with path.open("rb") as file:
        if file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            return "the file is UTF-16 text; save it as UTF-8"
        file.seek(0)
        for number, line in enumerate(iter(lambda: file.readline(_LONGEST_CELL), b""), start=1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                return f"line {number} is not UTF-8 text ({error.reason} at byte {error.start + 1} of it)"
    return "the file is not UTF-8 text"


def _separator(header: str) -> str:
    """A comma where the header has one, else whichever of the others it has most of."""
    return "," if "," in header else max(_SEPARATORS, key=header.count)
