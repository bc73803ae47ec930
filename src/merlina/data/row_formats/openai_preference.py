"""OpenAI's format for preference fine-tuning: `input`, `preferred_output` and `non_preferred_output`."""

from __future__ import annotations

from typing import Any

from merlina.data.conversation import UnusableRowError
from merlina.data.readers.files import Row
from merlina.data.row_formats.converter import RowConverter, columns, standard_row, value_of


def _fits(row: Row) -> bool:
    asked = row.get("input")
    return "preferred_output" in row or (isinstance(asked, dict) and "messages" in asked)


def _convert(row: Row) -> Row:
    asked = value_of(row, "input")
    if not isinstance(asked, dict) or "messages" not in asked:
        raise UnusableRowError("input has no messages; it must be an object with the key messages")
    parts: dict[str, Any] = {"prompt": asked["messages"], "chosen": value_of(row, "preferred_output")}
    if "non_preferred_output" in row:
        parts["rejected"] = row["non_preferred_output"]
    if asked.get("tools") is not None:
        parts["tools"] = asked["tools"]
    return standard_row(row, **parts)


OPENAI_PREFERENCE = RowConverter(
    "OpenAI preference", columns("input", "preferred_output", "non_preferred_output"), _fits, _convert
)
