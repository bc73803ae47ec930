"""Detect the format of a data set file and read its rows one at a time, in constant memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import PurePath
from typing import Any

from merlina.data.readers import csv_files, json_files, parquet_files
from merlina.data.readers.compression import Compression, compression_of, split_name
from merlina.data.readers.data_files import DataFile
from merlina.data.readers.encodings import is_utf_8
from merlina.data.readers.row_limit import RowLimit
from merlina.data.readers.text_files import TextFile
from merlina.errors import DataError
from merlina.schemas.datasets.sources import Encoding, FileFormat

Row = dict[str, Any]

_EXTENSIONS: dict[str, FileFormat] = {
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
}
_SUPPORTED = "supported are json, jsonl, csv, tsv and parquet, and all but parquet also as .gz or .zst"
_USUAL_LIMIT = RowLimit()

_READERS: dict[FileFormat, Callable[[TextFile, RowLimit, int], Iterator[Row]]] = {
    "json": json_files.read_json,
    "jsonl": json_files.read_jsonl,
    "csv": csv_files.read_csv,
    "tsv": partial(csv_files.read_csv, separator="\t"),
}
_COUNTERS: dict[FileFormat, Callable[[TextFile, RowLimit], int]] = {
    "json": json_files.count_json,
    "jsonl": json_files.count_jsonl,
    "csv": csv_files.count_csv,
    "tsv": partial(csv_files.count_csv, separator="\t"),
}


def detect_format(path: DataFile, name: str | None = None, encoding: Encoding | None = None) -> FileFormat:
    """Return the format by the extension of `name` (default: the file's name), else by content. Raises DataError."""
    name = name or path.name
    inner_name, compression = split_name(name)
    by_name = _EXTENSIONS.get(PurePath(inner_name).suffix.lower())
    if by_name is not None and compression is not None:
        _check_compressed(path, name, compression)
    if by_name is not None and by_name != "json":
        return _readable(path, by_name)
    by_content = _by_content(TextFile.inspect(path, encoding).head())
    return _readable(path, by_content or by_name or _unknown(name))


def read_rows(
    path: DataFile,
    file_format: FileFormat,
    limit: RowLimit = _USUAL_LIMIT,
    encoding: Encoding | None = None,
    start: int = 1,
) -> Iterator[Row]:
    """Yield the rows from number `start` on in order; those before are skipped with as little work as possible.

    Without an `encoding`, the text's beginning determines it. Raises DataError, which names the line (csv, tsv, jsonl)
    or row, if one cannot be read or exceeds the limit.
    """
    if file_format == "parquet":
        return parquet_files.read_parquet(path, limit, start)
    return _READERS[file_format](TextFile.inspect(path, encoding), limit, start)


def parse_all(path: DataFile, file_format: FileFormat, limit: RowLimit = _USUAL_LIMIT) -> int:
    """Read and count all rows. Raises DataError if a row cannot be read or the file has none."""
    if file_format == "parquet":
        count = parquet_files.parse_parquet(path, limit)
    else:
        count = sum(1 for _ in read_rows(path, file_format, limit))
    if count == 0:
        raise DataError(f"The {file_format} file has no rows")
    return count


def count_rows(
    path: DataFile, file_format: FileFormat, limit: RowLimit = _USUAL_LIMIT, encoding: Encoding | None = None
) -> int:
    """Return the exact number of rows, without reading them if the format allows that. Raises DataError."""
    if file_format == "parquet":
        return parquet_files.count_parquet(path)
    return _COUNTERS[file_format](TextFile.inspect(path, encoding), limit)


def encoding_note(path: DataFile, file_format: FileFormat) -> str | None:
    """Return how the text was decoded, for the user; None for UTF-8 and Parquet. Raises DataError."""
    return None if file_format == "parquet" else TextFile.inspect(path).encoding.note


def _by_content(head: bytes) -> FileFormat | None:
    if head.startswith(b"PAR1"):
        return "parquet"
    text = head.lstrip()
    if text.startswith(b"["):
        return "json"
    if not text.startswith(b"{"):
        return "csv" if _looks_like_csv(text) else None
    return "jsonl" if json_files.holds_lines(text) else "json"


def _looks_like_csv(text: bytes) -> bool:
    """Return whether the text starts with a header of several columns, followed by another line."""
    header, newline, _ = text.partition(b"\n")
    return bool(newline) and header.isascii() and b"\0" not in text and any(sign in header for sign in b",;\t|")


def _check_compressed(path: DataFile, name: str, compression: Compression) -> None:
    """Raise DataError unless the file is compressed, or text, since some browsers decompress what they download."""
    if compression_of(path) is None:
        file = TextFile.inspect(path)
        if file.encoding.note is None and not is_utf_8(file.head()):
            raise DataError(
                f"{name} does not begin like a {compression} file: it is damaged. Copy or compress it again"
            )


def _readable(path: DataFile, file_format: FileFormat) -> FileFormat:
    """Return the format. Raises DataError for compressed Parquet, since its end must be read first."""
    if file_format == "parquet" and (compression := compression_of(path)):
        raise DataError(f"The Parquet file is inside a {compression} file; decompress it, Parquet is compressed itself")
    return file_format


def _unknown(name: str) -> FileFormat:
    raise DataError(f"{name}: unknown file format; {_SUPPORTED}")
