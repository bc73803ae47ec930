"""The first rows of a data set, as they are and as they are trained on; reads no further than it shows."""

from __future__ import annotations

import base64
import math
from itertools import islice
from pathlib import Path
from typing import Any

from merlina.data.dataset import SkippedRow, read_pairs
from merlina.data.formats import ChatTemplate, Rendered, formatter
from merlina.data.sources import open_rows
from merlina.errors import DataError
from merlina.schemas.datasets import DatasetConfig

_ROWS_LOOKED_AT = 100


def preview_rows(config: DatasetConfig, file: Path | None, token: str | None, limit: int) -> list[dict[str, Any]]:
    """Up to `limit` rows, their values in a form JSON can carry. Raises DataError."""
    rows = list(islice(open_rows(config.source, file, token), limit))
    if not rows:
        raise DataError("The data set has no rows")
    return [{str(name): _jsonable(value) for name, value in row.items()} for row in rows]


def preview_formatted(
    config: DatasetConfig, file: Path | None, token: str | None, template: ChatTemplate | None, limit: int
) -> tuple[list[Rendered], list[SkippedRow]]:
    """Up to `limit` rendered pairs, and the rows before them that can't be used. Raises DataError."""
    render = formatter(config.format, template)
    rendered: list[Rendered] = []
    skipped: list[SkippedRow] = []
    for item in islice(read_pairs(config, file, token), _ROWS_LOOKED_AT):
        if isinstance(item, SkippedRow):
            skipped.append(item)
            continue
        rendered.append(render(item))
        if len(rendered) == limit:
            break
    if not rendered and not skipped:
        raise DataError("The data set has no rows")
    return rendered, skipped


def _jsonable(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(name): _jsonable(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(inner) for inner in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if value is None or isinstance(value, (int, bool)):
        return value
    # Half a surrogate pair is legal in JSON text, but no UTF-8 can carry it.
    return str(value).encode("utf-8", "replace").decode()
