"""Columns of text that a format does not read, so that the user learns what is not trained on."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Any

from merlina.data.readers.files import Row

_MIN_WORDS = 3
_MIN_LETTERS = 10
_COLUMNS_NAMED = 10
_WORD = re.compile(r"(?:^|\s)[^\W\d_]")
# Letters of scripts that do not separate words, such as Chinese, Japanese and Thai.
_LETTER = re.compile(r"[\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff]")


def unused_text_columns(rows: Sequence[Row], used: Collection[str]) -> tuple[str, ...]:
    """Return the columns that are not used and contain sentences in at least half of the rows that fill them.

    Ids, scores, names and dates are not sentences. A copy of a used column is not reported.
    """
    names = dict.fromkeys(name for row in rows for name in row if name not in used)
    texts = [(row, [row[name] for name in row if name in used]) for row in rows]
    found = (
        name
        for name in names
        if _has_sentences([row[name] for row, read in texts if row.get(name) not in (None, *read)])
    )
    return tuple(found)[:_COLUMNS_NAMED]


def _has_sentences(values: Sequence[Any]) -> bool:
    return bool(values) and 2 * sum(map(_is_sentence, values)) >= len(values)


def _is_sentence(value: Any) -> bool:
    if not isinstance(value, str):
        return False
    text = value[:1000]
    return len(_WORD.findall(text)) >= _MIN_WORDS or len(_LETTER.findall(text)) >= _MIN_LETTERS
