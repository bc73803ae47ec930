"""Read rows from JSON: one object per line, an array of objects, an object of columns, or a single row."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from merlina.data.readers.row_limit import RowLimit
from merlina.errors import DataError
from merlina.schemas.parsing.json_text import TOO_DEEP, TOO_MANY_DIGITS, has_more_values, problem_in_json, why_not_json

HEAD_BYTES = 1024**2
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_MAX_VALUES_IN_COLUMNS = 4_000_000
_MAX_COLUMNS_BYTES = 64 * 1024**2
# In a truncated text, the parser reports an error within the last literal or escape, which is no longer than this.
_MAX_WORD_LENGTH = 16
_WHITE_SPACE = re.compile(r"[ \t\r\n]*")


def read_jsonl(path: Path, limit: RowLimit) -> Iterator[dict[str, Any]]:
    """Yield one object per line, skipping blank lines; read an array or an indented object like `read_json`.

    Raises DataError, which names the line or row.
    """
    if _holds_one_value(path):
        yield from read_json(path, limit)
    else:
        for number, line in _lines(path, limit):
            limit.check_json(line, f"line {number}")
            row = _json_object(line, number)
            limit.check_columns(len(row), f"line {number}")
            yield row


def count_jsonl(path: Path, limit: RowLimit) -> int:
    return count_json(path, limit) if _holds_one_value(path) else sum(1 for _ in _lines(path, limit))


def read_json(path: Path, limit: RowLimit) -> Iterator[dict[str, Any]]:
    """Yield the rows of an array (incrementally) or of an object of columns, or the single row that an object is.

    Raises DataError, which names the row.
    """
    with path.open("rb") as file:
        start = _skip_to_json(file)
        if start == b"[":
            yield from _read_array(file, limit)
        elif start == b"{" and holds_lines(file.read(HEAD_BYTES)):
            yield from read_jsonl(path, limit)
        elif start == b"{":
            file.seek(0)
            _skip_to_json(file)
            yield from _read_one_object(file, path.stat().st_size, limit)
        elif start:
            raise DataError("The JSON file must contain an array of objects, one object of columns, or one row")


def count_json(path: Path, limit: RowLimit) -> int:
    return sum(1 for _ in read_json(path, limit))


def holds_lines(head: bytes) -> bool:
    """Return whether the first line is a complete object and the next one starts another object."""
    first, _, rest = head.partition(b"\n")
    return rest.lstrip().startswith(b"{") and _is_json(first)


def _holds_one_value(path: Path) -> bool:
    """Return whether the file starts with an array or a multi-line object, rather than with a row per line."""
    with path.open("rb") as file:
        start = _skip_to_json(file)
        return start == b"[" or (start == b"{" and _begins_in_several_lines(file.read(HEAD_BYTES)))


def _begins_in_several_lines(head: bytes) -> bool:
    """Return whether the text starts with an object that spans several lines, rather than with a broken line."""
    first, _, rest = head.partition(b"\n")
    if not rest or _is_json(first) or not _is_unfinished(first, 0):
        return False
    is_whole = _is_json(head) or _is_unfinished(head, _MAX_WORD_LENGTH if len(head) == HEAD_BYTES else 0)
    return is_whole or not _is_json_object(rest.lstrip().partition(b"\n")[0])


def _is_unfinished(text: bytes, last: int) -> bool:
    """Return whether the text is valid JSON except for its last `last` characters or its missing end."""
    decoded = text.decode("utf-8", "replace").rstrip()
    try:
        json.loads(decoded)
    except json.JSONDecodeError as error:
        return error.pos >= len(decoded) - last or (last > 0 and _is_cut_text(error))
    except (ValueError, RecursionError):
        return False
    return False


def _is_cut_text(error: json.JSONDecodeError) -> bool:
    return error.msg.startswith("Unterminated string")


def _is_json_object(line: bytes) -> bool:
    return line.startswith(b"{") and _is_json(line)


def _is_json(text: bytes) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _lines(path: Path, limit: RowLimit) -> Iterator[tuple[int, bytes]]:
    """Yield lines that are not blank with their numbers, from 1; blank lines count."""
    with path.open("rb") as file:
        number = 0
        while line := file.readline(limit.size + 1):
            number += 1
            if len(line) > limit.size:
                raise limit.exceeded(f"line {number}")
            line = line.removeprefix(_BYTE_ORDER_MARK) if number == 1 else line
            if line.strip():
                yield number, line


def _json_object(line: bytes, number: int) -> dict[str, Any]:
    try:
        value = json.loads(line.rstrip(), parse_constant=_constant_as_null)
    except UnicodeDecodeError as error:
        raise DataError(f"line {number} is not UTF-8 text ({error.reason} at byte {error.start})") from error
    except json.JSONDecodeError as error:
        problem = f"{problem_in_json(error)} at column {error.colno}"
        raise DataError(f"line {number} is not valid JSON: {problem}") from error
    except RecursionError as error:
        raise DataError(f"line {number} {TOO_DEEP}") from error
    except ValueError as error:
        raise DataError(f"line {number} {TOO_MANY_DIGITS}") from error
    if not isinstance(value, dict):
        raise DataError(f"line {number} is a JSON {_kind(value)}, not an object with columns")
    return value


def _constant_as_null(_text: str) -> None:
    """Return None for NaN and infinities, which JSON does not have."""
    return


def _kind(value: Any) -> str:
    names = {list: "array", str: "string", bool: "boolean", int: "number", float: "number", type(None): "null"}
    return names.get(type(value), type(value).__name__)


def _skip_to_json(file: BinaryIO) -> bytes:
    """Seek to the first character after whitespace and a byte-order mark, and return it."""
    if file.read(3) != _BYTE_ORDER_MARK:
        file.seek(0)
    while (character := file.read(1)).isspace():
        continue
    file.seek(-len(character), 1)
    return character


def _read_array(file: BinaryIO, limit: RowLimit) -> Iterator[dict[str, Any]]:
    """Yield the rows of an array, with little more than one row in memory."""
    window = _Window(file, limit)
    window.skip("[")
    if window.next_character() == "]":
        return
    number = 1
    while True:
        try:
            value = window.value(f"row {number}")
            if not isinstance(value, dict):
                raise DataError(f"row {number} is a JSON {_kind(value)}, not an object with columns")
            limit.check_columns(len(value), f"row {number}")
            yield value
            if window.next_character() != ",":
                break
            window.skip(",")
        except RecursionError as error:
            raise DataError(f"row {number} {TOO_DEEP}") from error
        except UnicodeDecodeError as error:
            raise DataError(f"row {number} is not UTF-8 text ({error.reason})") from error
        except json.JSONDecodeError as error:
            problem = f"{problem_in_json(error)} at {window.place_of(error)}"
            raise DataError(f"row {number} is not valid JSON: {problem}") from error
        except ValueError as error:
            raise DataError(f"row {number} {TOO_MANY_DIGITS}") from error
        number += 1
    if window.next_character() != "]":
        raise DataError(f"row {number + 1} is not valid JSON: expected a comma or the end of the array before it")
    window.skip("]")
    if window.next_character():
        raise DataError(f"There is more text after the end of the array, which has {number} rows")


class _Window:
    """Sliding window over a JSON text, which advances value by value."""

    _BLOCK = 256 * 1024

    def __init__(self, file: BinaryIO, limit: RowLimit) -> None:
        self._file = file
        self._limit = limit
        self._decode = codecs.getincrementaldecoder("utf-8")().decode
        self._parse = json.JSONDecoder(parse_constant=_constant_as_null).raw_decode
        self._text = ""
        self._at = 0
        self._lines_before = 0
        self._columns_before = 0
        self._ended = False

    def next_character(self) -> str:
        """Advance to the first character that is not whitespace and return it; empty at the end."""
        while True:
            self._at = _WHITE_SPACE.match(self._text, self._at).end()  # type: ignore[union-attr]
            if self._at < len(self._text) or self._ended:
                return self._text[self._at : self._at + 1]
            self._grow()

    def skip(self, character: str) -> None:
        assert self.next_character() == character
        self._at += 1

    def value(self, place: str) -> Any:
        """Return the next value; errors name it `place`. Raises ValueError if it is invalid, DataError if too large."""
        self.next_character()
        while True:
            try:
                value, end = self._parse(self._text, self._at)
            except json.JSONDecodeError as error:
                cut = error.pos > len(self._text) - _MAX_WORD_LENGTH or _is_cut_text(error)
                if self._ended or not cut:
                    raise
                if len(self._text) - self._at > self._limit.size:
                    raise self._limit.exceeded(place) from error
                self._grow()
            else:
                self._limit.check_json_text(self._text[self._at : end], place)
                self._at = end
                return value

    def place_of(self, error: json.JSONDecodeError) -> str:
        """Return line and column, in the file, of an error in the window."""
        column = error.colno + (self._columns_before if error.lineno == 1 else 0)
        return f"line {self._lines_before + error.lineno}, column {column}"

    def _grow(self) -> None:
        """Double the window, up to the limit of a row, so that parsing a long value takes linear time."""
        held, lines = self._text[self._at :], self._text.count("\n", 0, self._at)
        self._columns_before = self._at - (self._text.rindex("\n", 0, self._at) + 1 if lines else -self._columns_before)
        self._lines_before += lines
        more = self._file.read(max(self._BLOCK, min(len(held), self._limit.size - len(held))))
        self._ended = not more
        self._text, self._at = held + self._decode(more, final=self._ended), 0


def _read_one_object(file: BinaryIO, size: int, limit: RowLimit) -> Iterator[dict[str, Any]]:
    """Yield the rows of an object of columns, or the object itself. Either is read into memory as a whole."""
    if size > _MAX_COLUMNS_BYTES:
        raise DataError(
            f"The JSON file is one object and larger than {_MAX_COLUMNS_BYTES // 1024**2} MiB, so it "
            "cannot be read row by row. Write it as JSONL, CSV or Parquet"
        )
    text = file.read()
    if has_more_values(text, _MAX_VALUES_IN_COLUMNS):
        raise DataError(
            f"The JSON file is one object with more than {_MAX_VALUES_IN_COLUMNS:,} values, so it "
            "cannot be read row by row. Write it as JSONL, CSV or Parquet"
        )
    try:
        value: dict[str, Any] = json.loads(text, parse_constant=_constant_as_null)
    except (ValueError, RecursionError) as error:
        raise DataError(f"The file {why_not_json(error)}") from error
    rows = _rows_of_columns(value) if _are_columns(value) else iter([value] if value else [])
    for number, row in enumerate(rows, start=1):
        limit.check_row(row, f"row {number}")
        yield row


def _are_columns(value: dict[str, Any]) -> bool:
    """Return whether every value is an array with one element per row, rather than one conversation."""
    columns = value.values()
    return bool(value) and all(isinstance(column, list) for column in columns) and not any(map(_is_dialogue, columns))


def _is_dialogue(column: list[Any]) -> bool:
    """Return whether the column is a conversation: messages with different roles."""
    roles = {str(item.get("role", item.get("from"))) if isinstance(item, dict) else "None" for item in column}
    return len(roles) > 1 and "None" not in roles


def _rows_of_columns(columns: dict[str, list[Any]]) -> Iterator[dict[str, Any]]:
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        raise DataError(f"The columns differ in length: {lengths}")
    for values in zip(*columns.values(), strict=True):
        yield dict(zip(columns, values, strict=True))
