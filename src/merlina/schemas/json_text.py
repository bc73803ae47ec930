"""JSON text measured before it is parsed: how deep it is nested and how many values it holds.

Parsed, a value of two bytes takes up to a hundred times its size. Both functions assume valid JSON; for anything else
they return some number, and the parser reports the error.
"""

from __future__ import annotations

_BRACKETS = b"[]{}"
_ALL_BUT_BRACKETS = bytes(set(range(256)) - set(_BRACKETS))


def nesting_depth(text: bytes, stop_above: int) -> int:
    """Return how deep arrays and objects are nested, or `stop_above` + 1 if it is more than that."""
    depth = deepest = 0
    for bracket in _outside_strings(text).translate(None, _ALL_BUT_BRACKETS):
        depth += 1 if bracket in b"[{" else -1
        deepest = max(deepest, depth)
        if deepest > stop_above:
            break
    return deepest


def has_more_values(text: bytes, most: int) -> bool:
    """Return whether the text holds more than `most` array elements and object members, nested ones included."""
    if _separators(text) <= most:
        return False
    outside = _outside_strings(text)
    return _separators(outside) > most


def _outside_strings(text: bytes) -> bytes:
    return b"".join(text.replace(rb"\\", b"").replace(rb"\"", b"").split(b'"')[::2])


def _separators(text: bytes) -> int:
    return text.count(b"[") + text.count(b"{") + text.count(b",")
