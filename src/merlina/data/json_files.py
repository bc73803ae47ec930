"""Rows out of JSON: one object a line, one array of objects, or one object of columns."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import ijson

from merlina.errors import DataError

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_LONGEST_LINE = 64 * 1024**2
_LARGEST_COLUMNS = 64 * 1024**2


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """One object a line; blank lines are passed over. Raises DataError with the line."""
    for number, line in _lines(path):
        yield _json_object(line, number)


def count_jsonl(path: Path) -> int:
    return sum(1 for _ in _lines(path))


def read_json(path: Path) -> Iterator[dict[str, Any]]:
    """An array of objects, read as it goes, or one object of columns. Raises DataError with the row."""
    with path.open("rb") as file:
        start = _skip_to_json(file)
        if start == b"[":
            yield from _read_array(file)
        elif start == b"{":
            yield from _read_columns(file, path.stat().st_size)
        elif start:
            raise DataError("The JSON file must hold an array of objects, or one object of columns")


def count_json(path: Path) -> int:
    return sum(1 for _ in read_json(path))


def first_line(error: BaseException) -> str:
    """An error's message without the lines that libraries put below it."""
    return next(islice(str(error).splitlines(), 1), type(error).__name__)


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Lines that aren't blank, numbered from 1 over all."""
    with path.open("rb") as file:
        number = 0
        while line := file.readline(_LONGEST_LINE):
            number += 1
            if len(line) == _LONGEST_LINE:
                raise DataError(f"line {number} is longer than {_LONGEST_LINE // 1024**2} MB; is this a JSONL file?")
            line = line.removeprefix(_BYTE_ORDER_MARK) if number == 1 else line
            if line.strip():
                yield number, line


def _json_object(line: bytes, number: int) -> dict[str, Any]:
    try:
        value = json.loads(line.rstrip(), parse_constant=_no_number)
    except UnicodeDecodeError as error:
        raise DataError(f"line {number} is not UTF-8 text ({error.reason} at byte {error.start})") from error
    except json.JSONDecodeError as error:
        raise DataError(f"line {number} is not valid JSON: {error.msg} at column {error.colno}") from error
    except RecursionError as error:
        raise DataError(f"line {number} is nested too deeply") from error
    except ValueError as error:  # a number with more digits than Python turns into one
        raise DataError(f"line {number} can't be read: {first_line(error)}") from error
    if not isinstance(value, dict):
        raise DataError(f"line {number} is a JSON {_kind(value)}, not an object with columns")
    return value


def _no_number(_text: str) -> None:
    """NaN and infinities stand for a missing value."""
    return


def _kind(value: Any) -> str:
    names = {list: "array", str: "string", bool: "boolean", int: "number", float: "number", type(None): "null"}
    return names.get(type(value), type(value).__name__)


def _skip_to_json(file: BinaryIO) -> bytes:
    """Moves to the first character that isn't white space, past a byte-order mark, and returns it."""
    if file.read(3) != _BYTE_ORDER_MARK:
        file.seek(0)
    while (character := file.read(1)).isspace():
        continue
    file.seek(-len(character), 1)
    return character


def _read_array(file: BinaryIO) -> Iterator[dict[str, Any]]:
    items = ijson.items(_NanAsNull(file), "item", use_float=True)
    number = 0
    while True:
        number += 1
        try:
            value = next(items)
        except StopIteration:
            return
        except (ijson.JSONError, UnicodeDecodeError, ValueError) as error:
            raise DataError(f"row {number} is not valid JSON: {first_line(error)}") from error
        if not isinstance(value, dict):
            raise DataError(f"row {number} is a JSON {_kind(value)}, not an object with columns")
        yield value


def _read_columns(file: BinaryIO, size: int) -> Iterator[dict[str, Any]]:
    """One object of columns, each an array: it lies column by column, so it has to be held as a whole."""
    if size > _LARGEST_COLUMNS:
        raise DataError(
            f"The JSON file is one object of columns and larger than {_LARGEST_COLUMNS // 1024**2} MB: "
            "it can't be read row by row. Write it as JSONL, CSV or Parquet"
        )
    try:
        columns = json.load(file, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise DataError(f"The file is not valid JSON: {first_line(error)}") from error
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
