"""Truncate rows for responses: long texts, lists and objects end with a note about the omitted part."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping
from typing import Any

_ROW_BYTES = 40_000
_MAX_NAME_LENGTH = 200
_DEEPEST_SHOWN = 50
_MIN_SHARE_BYTES = 64


def truncate_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the row as JSON values of about 40 KB at most, divided evenly among its columns."""
    left = _Budget(_ROW_BYTES)
    shown: dict[str, Any] = {}
    for index, (name, value) in enumerate(row.items()):
        columns_left = len(row) - index
        if left.bytes < _MIN_SHARE_BYTES:
            shown["…"] = f"{columns_left:,} more columns"
            break
        name = left.take(truncate_name(name))
        share = _Budget(
            left.bytes // columns_left if columns_left * _MIN_SHARE_BYTES < left.bytes else _MIN_SHARE_BYTES
        )
        given = share.bytes
        shown[name] = _shown(value, share, 0)
        left.bytes -= given - share.bytes
    return shown


def truncate_name(name: object) -> str:
    """Return the name of a column or key, truncated to 200 characters."""
    text = _encodable(str(name))
    return text if len(text) <= _MAX_NAME_LENGTH else f"{text[:_MAX_NAME_LENGTH]}…"


class _Budget:
    """Number of bytes that a value may still use in the response."""

    def __init__(self, size: int) -> None:
        self.bytes = size

    def take(self, text: str) -> str:
        self.bytes -= _size(text)
        return text


def _shown(value: Any, budget: _Budget, depth: int) -> Any:
    if isinstance(value, (Mapping, list, tuple)) and depth == _DEEPEST_SHOWN:
        return budget.take("…")
    if isinstance(value, Mapping):
        return _shown_object(value, budget, depth)
    if isinstance(value, (list, tuple)):
        return _shown_list(value, budget, depth)
    if isinstance(value, float):
        value = value if math.isfinite(value) else None
    if value is None or isinstance(value, (float, bool)):
        budget.bytes -= 8
        return value
    if isinstance(value, int) and abs(value) < 1 << 64:
        budget.bytes -= 20
        return value
    return _shown_text(value, budget)


def _shown_object(value: Mapping[Any, Any], budget: _Budget, depth: int) -> dict[str, Any]:
    shown: dict[str, Any] = {}
    budget.bytes -= 2
    for index, (name, inner) in enumerate(value.items()):
        if budget.bytes < _MIN_SHARE_BYTES:
            shown["…"] = f"{len(value) - index:,} more keys"
            break
        shown[budget.take(truncate_name(name))] = _shown(inner, budget, depth + 1)
    return shown


def _shown_list(value: list[Any] | tuple[Any, ...], budget: _Budget, depth: int) -> list[Any]:
    shown: list[Any] = []
    budget.bytes -= 2
    for index, inner in enumerate(value):
        if budget.bytes < _MIN_SHARE_BYTES:
            shown.append(f"… ({len(value) - index:,} more items)")
            break
        shown.append(_shown(inner, budget, depth + 1))
    return shown


def _shown_text(value: Any, budget: _Budget) -> str:
    text = _text_of(value)
    kept = _encodable(text[: max(budget.bytes, _MIN_SHARE_BYTES)])
    while (size := _size(kept)) > max(budget.bytes, _MIN_SHARE_BYTES) and len(kept) > 1:
        # Escapes and non-ASCII text take several bytes per character.
        kept = kept[: max(1, len(kept) * max(budget.bytes, _MIN_SHARE_BYTES) // size)]
    left_out = len(text) - len(kept)
    budget.bytes -= _size(kept)
    return kept if left_out <= 0 else f"{kept}… ({left_out:,} more characters)"


def _text_of(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, int):
        # Python refuses to format integers of thousands of digits.
        return str(value) if value.bit_length() < 4096 else f"a number of {value.bit_length():,} bits"
    return str(value)


def _size(text: str) -> int:
    return len(json.dumps(text, ensure_ascii=False).encode())


def _encodable(text: str) -> str:
    """Replace lone surrogates, which JSON allows but UTF-8 cannot encode."""
    return text.encode("utf-8", "replace").decode()
