"""Columns of text that a format does not read, so that the user learns what is not trained on."""

from __future__ import annotations

import re
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

from merlina.data.readers.files import Row

_MIN_WORDS = 3
_MIN_LETTERS = 10
_COLUMNS_NAMED = 10
_ROWS_PER_COLUMN = 20
# Rows of JSON may have any number of different names.
_COLUMNS_COUNTED = 1000
_WORD = re.compile(r"(?:^|\s)[^\W\d_]")
# Letters of scripts that do not separate words, such as Chinese, Japanese and Thai.
_LETTER = re.compile(r"[\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff]")


@dataclass
class _Column:
    rows: int = 0
    sentences: int = 0


class UnusedColumns:
    """Finds unused columns with sentences in at least half of the first 20 rows that have a value there.

    Ids, scores, names and dates are not sentences. A copy of a used column is not reported.
    """

    def __init__(self) -> None:
        self._columns: dict[str, _Column] = {}

    def add(self, row: Row, used: AbstractSet[str]) -> None:
        """Examine the columns of a row that are not `used`."""
        if row.keys() <= used:
            return
        read: list[Any] | None = None
        for name, value in row.items():
            if name in used or value is None:
                continue
            column = self._columns.get(name)
            if column is None:
                if len(self._columns) == _COLUMNS_COUNTED:
                    continue
                column = self._columns[name] = _Column()
            if column.rows == _ROWS_PER_COLUMN:
                continue
            if read is None:
                read = [row[each] for each in row if each in used]
            if value not in read:
                column.rows += 1
                column.sentences += _is_sentence(value)

    @property
    def names(self) -> tuple[str, ...]:
        """The first ten of the columns, in the order in which they were found."""
        found = (name for name, column in self._columns.items() if column.rows and 2 * column.sentences >= column.rows)
        return tuple(found)[:_COLUMNS_NAMED]


def _is_sentence(value: Any) -> bool:
    if not isinstance(value, str):
        return False
    text = value[:1000]
    return len(_WORD.findall(text)) >= _MIN_WORDS or len(_LETTER.findall(text)) >= _MIN_LETTERS
