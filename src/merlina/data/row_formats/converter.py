"""The converter of one row format, and what the converters have in common."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from merlina.data.conversation import UnusableRowError
from merlina.data.pairs import is_missing
from merlina.data.readers.files import Row
from merlina.data.rendering.template_arguments import ARGUMENTS_COLUMN
from merlina.data.row_formats.ranked_answers import RankedAnswers

# Columns that mean the same in every format.
COMMON_COLUMNS = ("system", "reasoning", "tools", ARGUMENTS_COLUMN)


@dataclass(frozen=True)
class RowConverter:
    """The recognition and conversion of the rows of one format.

    `fits` decides by keys and content whether a row has the format; it never raises. `convert` returns a standard row,
    or several answers by rank, and raises UnusableRowError with the reason. `columns` are the columns that it reads.
    With `merges_adjacent`, adjacent rows with the same prompt are one question with several answers.
    """

    title: str
    columns: frozenset[str]
    fits: Callable[[Row], bool]
    convert: Callable[[Row], Row | RankedAnswers]
    merges_adjacent: bool = False


def columns(*names: str) -> frozenset[str]:
    """Return the columns that a converter reads: those named, and those of every format."""
    return frozenset((*names, *COMMON_COLUMNS))


def standard_row(row: Row, **parts: Any) -> Row:
    """Return a standard row of these parts with the row's common columns."""
    return {**{name: row[name] for name in COMMON_COLUMNS if name in row}, **parts}


def has(row: Row, *names: str) -> bool:
    """Return whether the row has all of these columns."""
    return all(name in row for name in names)


def first_of(row: Row, names: Iterable[str]) -> str | None:
    """Return the first of the names that is a column of the row, preferably one with a value."""
    found = [name for name in names if name in row]
    return next((name for name in found if row[name] is not None), found[0] if found else None)


def value_of(row: Row, *names: str) -> Any:
    """Return the value of the first of the columns that the row has. Raises UnusableRowError if it has none."""
    name = first_of(row, names)
    if name is None:
        raise UnusableRowError(f"{' or '.join(names)} is missing (columns here: {', '.join(list(row)[:12])})")
    return row[name]


def text_of(row: Row, *names: str) -> str:
    """Return the text in the first of the columns that the row has, '' for none. Raises UnusableRowError."""
    value = value_of(row, *names)
    if is_missing(value):
        return ""
    if not isinstance(value, str):
        raise UnusableRowError(f"{first_of(row, names)} has the type {type(value).__name__}, not text")
    return value


def number_of(value: Any) -> float | None:
    """Return a number or the number that a text states; None for anything else."""
    if isinstance(value, (bool, bytes)) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def shown(value: Any) -> str:
    """Return a value for a message: a short one itself, any other by its type."""
    if value is None:
        return "null"
    if isinstance(value, (str, float, bool)) or (isinstance(value, int) and abs(value) < 1 << 64):
        return repr(value) if len(repr(value)) <= 40 else f"{repr(value)[:40]}…"
    return f"a value of the type {type(value).__name__}"
