"""Rows cut to what a response may carry: long texts, lists and objects end with a note of what was left out."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping
from typing import Any

_ROW_BYTES = 40_000
_LONGEST_NAME = 200
_DEEPEST_SHOWN = 50
_LEAST_SHARE = 64


def truncate_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the row in a form JSON can carry, in about 40 KB at most. Its columns share them evenly."""
    left = _Room(_ROW_BYTES)
    shown: dict[str, Any] = {}
    for place, (name, value) in enumerate(row.items()):
        columns_left = len(row) - place
        if left.bytes < _LEAST_SHARE:
            shown["…"] = f"{columns_left:,} more columns"
            break
        name = left.take(truncate_name(name))
        share = _Room(left.bytes // columns_left if columns_left * _LEAST_SHARE < left.bytes else _LEAST_SHARE)
        given = share.bytes
        shown[name] = _shown(value, share, 0)
        left.bytes -= given - share.bytes
    return shown


def truncate_name(name: object) -> str:
    """Return a column's or key's name, cut to 200 characters."""
    text = _encodable(str(name))
    return text if len(text) <= _LONGEST_NAME else f"{text[:_LONGEST_NAME]}…"


class _Room:
    """Bytes that a value may still take in the response."""

    def __init__(self, size: int) -> None:
        self.bytes = size

    def take(self, text: str) -> str:
        self.bytes -= _size(text)
        return text


def _shown(value: Any, room: _Room, depth: int) -> Any:
    if isinstance(value, (Mapping, list, tuple)) and depth == _DEEPEST_SHOWN:
        return room.take("…")
    if isinstance(value, Mapping):
        return _shown_object(value, room, depth)
    if isinstance(value, (list, tuple)):
        return _shown_list(value, room, depth)
    if isinstance(value, float):
        value = value if math.isfinite(value) else None
    if value is None or isinstance(value, (float, bool)):
        room.bytes -= 8
        return value
    if isinstance(value, int) and abs(value) < 1 << 64:
        room.bytes -= 20
        return value
    return _shown_text(value, room)


def _shown_object(value: Mapping[Any, Any], room: _Room, depth: int) -> dict[str, Any]:
    shown: dict[str, Any] = {}
    room.bytes -= 2
    for place, (name, inner) in enumerate(value.items()):
        if room.bytes < _LEAST_SHARE:
            shown["…"] = f"{len(value) - place:,} more keys"
            break
        shown[room.take(truncate_name(name))] = _shown(inner, room, depth + 1)
    return shown


def _shown_list(value: list[Any] | tuple[Any, ...], room: _Room, depth: int) -> list[Any]:
    shown: list[Any] = []
    room.bytes -= 2
    for place, inner in enumerate(value):
        if room.bytes < _LEAST_SHARE:
            shown.append(f"… ({len(value) - place:,} more items)")
            break
        shown.append(_shown(inner, room, depth + 1))
    return shown


def _shown_text(value: Any, room: _Room) -> str:
    text = _text_of(value)
    kept = _encodable(text[: max(room.bytes, _LEAST_SHARE)])
    while (size := _size(kept)) > max(room.bytes, _LEAST_SHARE) and len(kept) > 1:
        # Escapes and other alphabets take several bytes a character.
        kept = kept[: max(1, len(kept) * max(room.bytes, _LEAST_SHARE) // size)]
    left_out = len(text) - len(kept)
    room.bytes -= _size(kept)
    return kept if left_out <= 0 else f"{kept}… ({left_out:,} more characters)"


def _text_of(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, int):
        # Python refuses to write out numbers of thousands of digits.
        return str(value) if value.bit_length() < 4096 else f"a number of {value.bit_length():,} bits"
    return str(value)


def _size(text: str) -> int:
    return len(json.dumps(text, ensure_ascii=False).encode())


def _encodable(text: str) -> str:
    """Half a surrogate pair is legal in JSON text, but no UTF-8 can carry it."""
    return text.encode("utf-8", "replace").decode()
