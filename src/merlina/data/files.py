"""Rows out of json, jsonl, csv and parquet files, one at a time, in constant memory."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import ijson

from merlina.errors import DataError
from merlina.schemas.datasets import FileFormat

Row = dict[str, Any]

_ENDINGS: dict[str, FileFormat] = {
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".parquet": "parquet",
}
_SUPPORTED = "json, jsonl, csv and parquet files can be read"
_LONGEST_CELL = 64 * 1024**2
_HEAD_BYTES = 64 * 1024
_PARQUET_BATCH = 256


def detect_format(path: Path, name: str | None = None) -> FileFormat:
    """By the ending of `name` (the file's own where left out), else by its first bytes. Raises DataError."""
    by_name = _ENDINGS.get(Path(name or path.name).suffix.lower())
    if by_name is not None:
        return by_name
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    if head.startswith(b"PAR1"):
        return "parquet"
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if text.startswith(b"["):
        return "json"
    if text.startswith(b"{"):
        return "jsonl" if _is_json(text.split(b"\n")[0]) else "json"
    raise DataError(f"{name or path.name}: can't tell what kind of file this is; {_SUPPORTED}")


def read_rows(path: Path, file_format: FileFormat) -> Iterator[Row]:
    """Rows in the file's order, read as they are asked for.

    Raises DataError naming the line, or for parquet and json the row, that can't be read.
    """
    return _READERS[file_format](path)


def count_rows(path: Path, file_format: FileFormat) -> int:
    """Reads everything once. Raises DataError where something can't be read or there is no row at all."""
    count = sum(1 for _ in read_rows(path, file_format))
    if count == 0:
        raise DataError(f"The {file_format} file has no rows")
    return count


def known_rows(path: Path, file_format: FileFormat) -> int | None:
    """The number of rows where the file says it itself (parquet), else None."""
    if file_format != "parquet":
        return None
    with _parquet(path) as file:
        return int(file.metadata.num_rows)


def _is_json(text: bytes) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _read_jsonl(path: Path) -> Iterator[Row]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if line.strip():
                yield _json_object(line, number)


def _json_object(line: bytes, number: int) -> Row:
    try:
        value = json.loads(line, parse_constant=_no_number)
    except UnicodeDecodeError as error:
        raise DataError(f"line {number} is not UTF-8 text ({error.reason} at byte {error.start})") from error
    except json.JSONDecodeError as error:
        raise DataError(f"line {number} is not valid JSON: {error.msg} at column {error.colno}") from error
    except RecursionError as error:
        raise DataError(f"line {number} is nested too deeply") from error
    if not isinstance(value, dict):
        raise DataError(f"line {number} is a JSON {_kind(value)}, not an object with columns")
    return value


def _no_number(_text: str) -> None:
    """NaN and infinities stand for a missing value."""
    return


def _kind(value: Any) -> str:
    names = {list: "array", str: "string", bool: "boolean", int: "number", float: "number", type(None): "null"}
    return names.get(type(value), type(value).__name__)


def _read_json(path: Path) -> Iterator[Row]:
    with path.open("rb") as file:
        start = _skip_to_json(file)
        if start == b"[":
            yield from _read_array(file)
        elif start == b"{":
            yield from _read_columns(file)
        elif start:
            raise DataError("The JSON file must hold an array of objects, or one object of columns")


def _skip_to_json(file: BinaryIO) -> bytes:
    """Moves to the first character that isn't white space, past a byte-order mark, and returns it."""
    if file.read(3) != b"\xef\xbb\xbf":
        file.seek(0)
    while (character := file.read(1)).isspace():
        continue
    file.seek(-len(character), 1)
    return character


def _read_array(file: BinaryIO) -> Iterator[Row]:
    items = ijson.items(_NanAsNull(file), "item", use_float=True)
    number = 0
    while True:
        number += 1
        try:
            value = next(items)
        except StopIteration:
            return
        except (ijson.JSONError, UnicodeDecodeError) as error:
            raise DataError(f"row {number} is not valid JSON: {_first_line(error)}") from error
        if not isinstance(value, dict):
            raise DataError(f"row {number} is a JSON {_kind(value)}, not an object with columns")
        yield value


def _read_columns(file: BinaryIO) -> Iterator[Row]:
    """One object of columns, each an array: it lies column by column, so it has to be read as a whole."""
    try:
        columns = json.load(file, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise DataError(f"The file is not valid JSON: {_first_line(error)}") from error
    if not all(isinstance(column, list) for column in columns.values()):
        raise DataError("The JSON file is one object, but not one of columns: each value must be an array")
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        raise DataError(f"The columns differ in length: {lengths}")
    names = list(columns)
    for values in zip(*columns.values(), strict=True):
        yield dict(zip(names, values, strict=True))


class _NanAsNull:
    """A file whose NaN and Infinity, which JSON doesn't know, are read as null, outside of strings only."""

    _WORDS = ((b"-Infinity", b"null     "), (b"Infinity", b"null    "), (b"NaN", b"null"))

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._in_string = False

    def read(self, size: int = -1) -> bytes:
        chunk = self._file.read(size)
        while chunk and chunk[-1:] not in b"\"',:[]{}\n ":
            more = self._file.read(1)
            if not more:
                break
            chunk += more
        if b"NaN" not in chunk and b"Infinity" not in chunk and b"\\" not in chunk:
            self._in_string ^= chunk.count(b'"') % 2 == 1
            return chunk
        return self._replace(chunk)

    def _replace(self, chunk: bytes) -> bytes:
        # A backslash at a chunk's end can't split an escape: a chunk ends in a character that ends a word,
        # and of these only a quote can be escaped, whose backslash then stands in the same chunk.
        pieces = chunk.replace(b"\\\\", b"\0\0").replace(b'\\"', b"\0\1").split(b'"')
        for index, piece in enumerate(pieces):
            if self._in_string == (index % 2 == 1):
                for word, null in self._WORDS:
                    piece = piece.replace(word, null)
                pieces[index] = piece
        self._in_string ^= len(pieces) % 2 == 0
        return b'"'.join(pieces).replace(b"\0\1", b'\\"').replace(b"\0\0", b"\\\\")


def _read_csv(path: Path) -> Iterator[Row]:
    csv.field_size_limit(_LONGEST_CELL)
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            names = reader.fieldnames
            if names is not None and len(set(names)) < len(names):
                raise DataError(f"the header names a column twice: {', '.join(names)}")
            for row in reader:
                if None in row:
                    raise DataError(f"line {reader.line_num} has more cells than the header has columns")
                yield {name: value for name, value in row.items() if value is not None}
        except csv.Error as error:
            raise DataError(f"line {reader.line_num} is not valid CSV: {error}") from error
        except UnicodeDecodeError as error:
            raise DataError(f"after line {reader.line_num} the file is not UTF-8 text ({error.reason})") from error


def _read_parquet(path: Path) -> Iterator[Row]:
    import pyarrow

    number = 0
    with _parquet(path) as file:
        try:
            for batch in file.iter_batches(batch_size=_PARQUET_BATCH):
                for row in batch.to_pylist():
                    number += 1
                    yield {name: _finite(value) for name, value in row.items()}
        except pyarrow.ArrowException as error:
            raise DataError(f"the Parquet file can't be read after row {number}: {_first_line(error)}") from error


def _parquet(path: Path) -> Any:
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.ParquetFile(path)
    except pyarrow.ArrowException as error:
        raise DataError(f"The file is not readable as Parquet: {_first_line(error)}") from error


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _first_line(error: BaseException) -> str:
    return next(islice(str(error).splitlines(), 1), type(error).__name__)


_READERS: dict[FileFormat, Callable[[Path], Iterator[Row]]] = {
    "json": _read_json,
    "jsonl": _read_jsonl,
    "csv": _read_csv,
    "parquet": _read_parquet,
}
