"""Messages and lists that a CSV file holds as text: JSON, or the text of a Python value.

pandas writes a list of messages as `[{'role': 'user', 'content': 'Hi'}]`, and an array of them without commas.
"""

from __future__ import annotations

import ast
import contextlib
import json
import re
import warnings
from collections.abc import Collection
from typing import Any

from merlina.data.conversation import UnusableRowError
from merlina.data.pairs import is_role
from merlina.data.readers.files import Row

# Columns that hold no text in the formats that have them. Others are parsed only if they contain messages.
_STRUCTURED = frozenset(
    {"answers", "completions", "generations", "responses", "ratings", "rating", "scores", "history", "input", "output"}
)
_MAX_PYTHON_CHARACTERS = 200_000
_OPENING = frozenset("[{")
_KEYS = ("role", "from", "content", "value")
_MESSAGE = re.compile(rf"""\[\s*\{{\s*['"]({"|".join(_KEYS)})['"]\s*:|\{{\s*['"](role|from)['"]\s*:""")
# In the text of a value, a line break inside a string is written as \n, so that this one is between two objects.
_BETWEEN_OBJECTS = re.compile(r"\}\s*\n\s*\{")


def parsed(row: Row, columns: Collection[str]) -> Row:
    """Return the row with messages and lists instead of their text in these columns; the same object if there is none.

    Raises UnusableRowError for text that begins like messages and cannot be parsed.
    """
    found = {
        name: value
        for name, text in row.items()
        if type(text) is str and text[:1] in _OPENING and name in columns and (value := _value(name, text)) is not None
    }
    return {**row, **found} if found else row


def parsed_if_possible(row: Row) -> Row:
    """Return the row with what can be parsed in all of its columns, to detect its format."""
    for name in row:
        with contextlib.suppress(UnusableRowError):
            row = parsed(row, (name,))
    return row


def _value(column: str, text: str) -> Any:
    """Return what the text stands for; None if it is to be read as text."""
    looks_like_messages = _MESSAGE.match(text) is not None
    if not looks_like_messages and column not in _STRUCTURED:
        return None
    value = _parse(text)
    if _is_structure(value, column):
        return value
    if looks_like_messages and (value is None or (isinstance(value, list) and any(map(_is_message, value)))):
        raise UnusableRowError(
            f"{column} begins like messages in a text, but is neither JSON nor a Python value of messages; write it as "
            "JSON"
        )
    return None


def _is_structure(value: Any, column: str) -> bool:
    """Return whether a parsed value is one message, messages, or a list that the column is known for."""
    if isinstance(value, dict):
        return _is_message(value) or (column == "input" and "messages" in value)
    if not isinstance(value, list) or not value:
        return False
    return all(map(_is_message, value)) or (column in _STRUCTURED and column != "input")


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and is_role(value.get("role", value.get("from")))


def _parse(text: str) -> Any:
    """Return the value of JSON or of a Python literal; None if it is neither, or larger than a literal may be."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    if len(text) > _MAX_PYTHON_CHARACTERS:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about escapes in the text
            return ast.literal_eval(_BETWEEN_OBJECTS.sub("}, {", text))
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return None
