"""The first rows of a data set, as they are and as they are trained on; reads no further than it shows."""

from __future__ import annotations

import base64
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from merlina.data.dataset import SkippedRow, read_pairs, split_pairs
from merlina.data.doctor import Doctor, Lengths
from merlina.data.formats import MARKERS, formatter
from merlina.data.pairs import Pair, UnusableRowError
from merlina.data.sources import open_rows
from merlina.errors import DataError
from merlina.schemas.datasets import DataFinding, DatasetConfig, DatasetFormat

_ROWS_LOOKED_AT = 500
_SECONDS_LOOKED = 0.2
_WARNINGS_SHOWN = 20
_DEEPEST_SHOWN = 50
_LONGEST_SHOWN = 100_000
_PREVIEW_SEED = 42  # a run's default


def preview_rows(config: DatasetConfig, file: Path | None, token: str | None, limit: int) -> list[dict[str, Any]]:
    """Up to `limit` and `max_samples` rows, their values in a form JSON can carry. Raises DataError."""
    rows = list(islice(open_rows(config.source, file, token), min(limit, config.max_samples or limit)))
    if not rows:
        raise DataError("The data set has no rows")
    return [{_encodable(name): _jsonable(value) for name, value in row.items()} for row in rows]


def column_names(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """All columns that any of the rows has, in order of appearance."""
    return list(dict.fromkeys(name for row in rows for name in row))


@dataclass(frozen=True)
class FormattedPreview:
    """`samples` as they are trained on, each with the number of its `row`; `warnings` name those that can't be used."""

    samples: list[dict[str, Any]]
    warnings: list[str]
    findings: list[DataFinding]
    rows_examined: int


Show = Callable[[Pair], tuple[dict[str, Any], Lengths | None]]
"""A pair as a sample, with its lengths where it was turned into tokens. May raise UnusableRowError."""


def preview_formatted(
    config: DatasetConfig, file: Path | None, token: str | None, show: Show, limit: int
) -> FormattedPreview:
    """Up to `limit` samples, and what a doctor says of them and of as many rows behind them as take no time.

    Raises DataError.
    """
    doctor = Doctor(MARKERS[config.format.format_type])
    samples: list[dict[str, Any]] = []
    warnings: list[str] = []
    pairs: list[Pair] = []
    give_up_at = time.monotonic() + _SECONDS_LOOKED
    needs_rejected = config.training_mode != "sft"
    for item in islice(read_pairs(config, file, token, needs_rejected=needs_rejected), _ROWS_LOOKED_AT):
        try:
            if isinstance(item, SkippedRow):
                raise UnusableRowError(item.reason, item.kind)
            sample, lengths = show(item)
        except UnusableRowError as error:
            doctor.skip(SkippedRow(item.number, error.message, error.kind))
            if len(samples) < limit:
                warnings.append(f"row {item.number} can't be used: {error.message}")
        else:
            doctor.see(item, lengths)
            pairs.append(item)
            samples += [{**sample, "row": item.number}] if len(samples) < limit else []
        if len(samples) == limit and time.monotonic() > give_up_at:
            break
    if not doctor.rows:
        raise DataError("The data set has no rows")
    _, held_out = split_pairs(pairs, config.test_size, _PREVIEW_SEED)
    return FormattedPreview(samples, warnings[:_WARNINGS_SHOWN], doctor.findings(held_out), doctor.rows)


def show_text(spec: DatasetFormat) -> Show:
    """Samples of text alone, for formats that need no tokenizer."""
    render = formatter(spec, None)
    return lambda pair: (asdict(render(pair)), None)


def _jsonable(value: Any, depth: int = 0) -> Any:
    if isinstance(value, (dict, list, tuple)) and depth == _DEEPEST_SHOWN:
        return "…"
    if isinstance(value, dict):
        return {_encodable(name): _jsonable(inner, depth + 1) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(inner, depth + 1) for inner in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if value is None or isinstance(value, (int, bool)):
        return value
    return _encodable(value)


def _encodable(value: Any) -> str:
    """Half a surrogate pair is legal in JSON text, but no UTF-8 can carry it; and nobody reads a book in a cell."""
    text = str(value)
    shown = text[:_LONGEST_SHOWN].encode("utf-8", "replace").decode()
    left_out = len(text) - _LONGEST_SHOWN
    return shown if left_out <= 0 else f"{shown}… ({left_out:,} more characters)"
