"""Rows that are standard rows already, so that their format is recognized and nothing is converted."""

from __future__ import annotations

from typing import Any

from merlina.data.readers.files import Row
from merlina.data.row_formats.converter import RowConverter, columns

CONVERSATION_COLUMNS = ("conversations", "conversation", "messages")


def is_standard(row: Row) -> bool:
    """Return whether the row has a chosen answer, and a prompt in a column or in the answers themselves."""
    if "chosen" not in row:
        return False
    chosen = row["chosen"]
    return has_prompt(row) or (isinstance(chosen, list) and len(chosen) > 1)


def has_prompt(row: Row) -> bool:
    """Return whether the row has a standard column with a prompt."""
    return "prompt" in row or any(name in row for name in CONVERSATION_COLUMNS)


def _is_sharegpt(row: Row) -> bool:
    return any(_begins_with(row.get(name), "from") for name in (*CONVERSATION_COLUMNS, "chosen", "rejected"))


def _has_messages(row: Row) -> bool:
    return "chosen" not in row and any(_begins_with(row.get(name), "role") for name in CONVERSATION_COLUMNS)


def _begins_with(value: Any, key: str) -> bool:
    """Return whether a value is a message, or begins with one, that has this key."""
    first = value[0] if isinstance(value, list) and value else value
    return isinstance(first, dict) and key in first


def _unchanged(row: Row) -> Row:
    return row


_READ = columns("prompt", "chosen", "rejected", *CONVERSATION_COLUMNS)

STANDARD = RowConverter("Standard columns", _READ, is_standard, _unchanged)
SHAREGPT = RowConverter("ShareGPT conversations", _READ, _is_sharegpt, _unchanged)
MESSAGES = RowConverter("Messages", _READ, _has_messages, _unchanged)
