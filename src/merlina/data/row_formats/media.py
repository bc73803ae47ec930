"""Rows with images, audio or video, which are refused: training is on text only."""

from __future__ import annotations

from typing import Any

from merlina.data.conversation import UnusableRowError
from merlina.data.pairs import is_missing
from merlina.data.readers.files import Row

_COLUMNS = frozenset({"image", "images", "audio", "audios", "video", "videos"})


def refuse_media(row: Row) -> None:
    """Raise UnusableRowError if a column contains images, audio or video."""
    names = [name for name, value in row.items() if type(value) is dict and _is_file(value)]
    if not _COLUMNS.isdisjoint(row):
        names += [name for name in row if name in _COLUMNS and not is_missing(row[name])]
    if names:
        raise UnusableRowError(
            f"{names[0]} contains an image, audio or video, and training is on text only; remove such rows, or the "
            "column if the text is complete without it"
        )


def _is_file(value: dict[Any, Any]) -> bool:
    """Return whether a value has the form in which data sets hold a file."""
    return "bytes" in value and "path" in value
