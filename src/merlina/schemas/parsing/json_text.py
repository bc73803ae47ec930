"""Nesting depth and number of values of JSON text, measured before it is parsed, and messages for syntax errors.

A parsed value may take a hundred times the memory of its text. Both measures assume valid JSON; for other texts the
result is arbitrary, and the parser reports the error.
"""

from __future__ import annotations

import json
import sys

TOO_MANY_DIGITS = f"contains a number with more than {sys.get_int_max_str_digits():,} digits"
TOO_DEEP = "is nested too deeply"
# By the beginning of the parser's message.
_PROBLEMS = {
    "Expecting property name": "a name in double quotes was expected",
    "Expecting ':'": "a colon was expected",
    "Expecting ','": "a comma or the end of the array or object was expected",
    "Expecting value": "a value was expected",
    "Extra data": "there is more text after the end of the value",
    "Unterminated string": "a string has no closing quotation mark",
    "Invalid control character": "a string contains a line break or another control character that is not escaped",
    "Invalid \\": "a string contains a backslash that does not begin a JSON escape sequence",
    "Illegal trailing comma": "a comma is followed by no further element",
    "Unexpected UTF-8 BOM": "the text begins with a byte-order mark",
}


_BRACKETS = b"[]{}"
_ALL_BUT_BRACKETS = bytes(set(range(256)) - set(_BRACKETS))


def problem_in_json(error: json.JSONDecodeError) -> str:
    """Return the syntax error without its position."""
    return next((words for begin, words in _PROBLEMS.items() if error.msg.startswith(begin)), "it cannot be parsed")


def why_not_json(error: ValueError | RecursionError) -> str:
    """Return why a text is not JSON, with line and column, as the predicate of a sentence about the text."""
    if isinstance(error, json.JSONDecodeError):
        return f"is not valid JSON: {problem_in_json(error)} at line {error.lineno}, column {error.colno}"
    if isinstance(error, UnicodeDecodeError):
        return f"is not UTF-8 text (byte 0x{error.object[error.start]:02x} at position {error.start + 1:,})"
    return TOO_DEEP if isinstance(error, RecursionError) else TOO_MANY_DIGITS


def nesting_depth(text: bytes, stop_above: int) -> int:
    """Return the nesting depth of arrays and objects, or `stop_above` + 1 if it is greater."""
    depth = deepest = 0
    for bracket in _outside_strings(text).translate(None, _ALL_BUT_BRACKETS):
        depth += 1 if bracket in b"[{" else -1
        deepest = max(deepest, depth)
        if deepest > stop_above:
            break
    return deepest


def has_more_values(text: bytes, max_values: int) -> bool:
    """Return whether the text has more than `max_values` array elements and object members, including nested ones."""
    if _separators(text) <= max_values:
        return False
    outside = _outside_strings(text)
    return _separators(outside) > max_values


def _outside_strings(text: bytes) -> bytes:
    return b"".join(text.replace(rb"\\", b"").replace(rb"\"", b"").split(b'"')[::2])


def _separators(text: bytes) -> int:
    return text.count(b"[") + text.count(b"{") + text.count(b",")
