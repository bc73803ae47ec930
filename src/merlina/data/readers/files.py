"""Detect the format of a data set file and read its rows one at a time, in constant memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from merlina.data.readers import csv_files, json_files, parquet_files
from merlina.data.readers.row_limit import RowLimit
from merlina.errors import DataError
from merlina.schemas.datasets import FileFormat

Row = dict[str, Any]

_EXTENSIONS: dict[str, FileFormat] = {
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".parquet": "parquet",
}
_SUPPORTED = "supported are json, jsonl, csv and parquet"
_USUAL_LIMIT = RowLimit()
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"

_READERS: dict[FileFormat, Callable[[Path, RowLimit], Iterator[Row]]] = {
    "json": json_files.read_json,
    "jsonl": json_files.read_jsonl,
    "csv": csv_files.read_csv,
    "parquet": parquet_files.read_parquet,
}
_COUNTERS: dict[FileFormat, Callable[[Path, RowLimit], int]] = {
    "json": json_files.count_json,
    "jsonl": json_files.count_jsonl,
    "csv": csv_files.count_csv,
    "parquet": parquet_files.count_parquet,
}


def detect_format(path: Path, name: str | None = None) -> FileFormat:
    """Return the format by the extension of `name` (default: the file's name), else by content. Raises DataError."""
    by_name = _EXTENSIONS.get(Path(name or path.name).suffix.lower())
    if by_name is not None and by_name != "json":
        return by_name
    with path.open("rb") as file:
        head = file.read(json_files.HEAD_BYTES)
    return _by_content(head) or by_name or _unknown(name or path.name)


def read_rows(path: Path, file_format: FileFormat, limit: RowLimit = _USUAL_LIMIT) -> Iterator[Row]:
    """Yield the rows in order.

    Raises DataError, which names the line (csv, jsonl) or row, if one cannot be read or exceeds the limit.
    """
    return _READERS[file_format](path, limit)


def parse_all(path: Path, file_format: FileFormat, limit: RowLimit = _USUAL_LIMIT) -> int:
    """Read and count all rows. Raises DataError if a row cannot be read or the file has none."""
    if file_format == "parquet":
        count = parquet_files.parse_parquet(path, limit)
    else:
        count = sum(1 for _ in read_rows(path, file_format, limit))
    if count == 0:
        raise DataError(f"The {file_format} file has no rows")
    return count


def count_rows(path: Path, file_format: FileFormat, limit: RowLimit = _USUAL_LIMIT) -> int:
    """Return the exact number of rows, without reading them if the format allows that. Raises DataError."""
    return _COUNTERS[file_format](path, limit)


def _by_content(head: bytes) -> FileFormat | None:
    if head.startswith(b"PAR1"):
        return "parquet"
    text = head.removeprefix(_BYTE_ORDER_MARK).lstrip()
    if text.startswith(b"["):
        return "json"
    if not text.startswith(b"{"):
        return "csv" if _looks_like_csv(text) else None
    return "jsonl" if json_files.holds_lines(text) else "json"


def _looks_like_csv(text: bytes) -> bool:
    """Return whether the text starts with a header of several columns, followed by another line."""
    header, newline, _ = text.partition(b"\n")
    return bool(newline) and header.isascii() and b"\0" not in text and any(sign in header for sign in b",;\t|")


def _unknown(name: str) -> FileFormat:
    raise DataError(f"{name}: unknown file format; {_SUPPORTED}")
