"""Read rows from JSON: one object per line, an array of objects, an object of columns, or a single row."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from io import BufferedReader
from itertools import islice
from typing import Any

from merlina.data.readers.encodings import SET_ENCODING
from merlina.data.readers.row_limit import RowLimit
from merlina.data.readers.text_files import HEAD_BYTES, TextFile
from merlina.errors import DataError
from merlina.schemas.parsing.json_text import TOO_DEEP, TOO_MANY_DIGITS, has_more_values, problem_in_json, why_not_json

_MAX_VALUES_IN_COLUMNS = 4_000_000
_MAX_COLUMNS_BYTES = 64 * 1024**2
# In a truncated text, the parser reports an error within the last literal or escape, which is no longer than this.
_MAX_WORD_LENGTH = 16
# A line of this length is below all limits of a row.
_SURELY_SMALL = 8192
_WHITE_SPACE = re.compile(r"[ \t\r\n]*")
# NaN and infinities, which JSON does not have, become None. A decoder of its own for each line would take longer than
# most lines.
_DECODER = json.JSONDecoder(parse_constant=lambda _text: None)


def read_jsonl(file: TextFile, limit: RowLimit, start: int = 1) -> Iterator[dict[str, Any]]:
    """Yield one object per line, skipping blank lines; read an array or an indented object like `read_json`.

    Lines before row `start` are not parsed. Raises DataError, which names the line or row.
    """
    if _holds_one_value(file):
        yield from read_json(file, limit, start)
    else:
        for number, line in islice(_lines(file, limit), start - 1, None):
            if len(line) > _SURELY_SMALL:
                limit.check_json(line, f"line {number}")
            row = _json_object(line, number)
            if len(line) > _SURELY_SMALL:
                limit.check_columns(len(row), f"line {number}")
            yield row


def count_jsonl(file: TextFile, limit: RowLimit) -> int:
    """Return the number of rows. Raises DataError if a line exceeds the limit."""
    return count_json(file, limit) if _holds_one_value(file) else sum(1 for _ in _lines(file, limit))


def read_json(file: TextFile, limit: RowLimit, start: int = 1) -> Iterator[dict[str, Any]]:
    """Yield the rows of an array (incrementally) or of an object of columns, or the single row that an object is.

    The first of them is row `start`. Raises DataError, which names the row.
    """
    with file.open() as stream:
        opening = _skip_to_json(stream)
        if opening == b"[":
            yield from islice(_read_array(stream, limit), start - 1, None)
        elif opening == b"{" and holds_lines(stream.read(HEAD_BYTES)):
            yield from read_jsonl(file, limit, start)
        elif opening == b"{":
            yield from islice(_read_one_object(file, limit), start - 1, None)
        elif opening:
            raise DataError("The JSON file must contain an array of objects, one object of columns, or one row")


def count_json(file: TextFile, limit: RowLimit) -> int:
    """Return the number of rows. Raises DataError, which names the row."""
    return sum(1 for _ in read_json(file, limit))


def holds_lines(head: bytes) -> bool:
    """Return whether the first line is a complete object and the next one starts another object."""
    first, _, rest = head.partition(b"\n")
    return rest.lstrip().startswith(b"{") and _is_json(first)


def _holds_one_value(file: TextFile) -> bool:
    """Return whether the file starts with an array or a multi-line object, rather than with a row per line."""
    with file.open() as stream:
        start = _skip_to_json(stream)
        return start == b"[" or (start == b"{" and _begins_in_several_lines(stream.read(HEAD_BYTES)))


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


def _lines(file: TextFile, limit: RowLimit) -> Iterator[tuple[int, bytes]]:
    """Yield lines that are not blank with their numbers, from 1; blank lines count."""
    with file.open() as stream:
        number = 0
        while line := stream.readline(limit.size + 1):
            number += 1
            if len(line) > limit.size:
                raise limit.exceeded(f"line {number}")
            if line.strip():
                yield number, line


def _json_object(line: bytes, number: int) -> dict[str, Any]:
    try:
        value = _decode(line.rstrip())
    except UnicodeDecodeError as error:
        problem = f"line {number} is not UTF-8 text ({error.reason} at byte {error.start + 1} of it)"
        raise DataError(f"{problem}. {SET_ENCODING}") from error
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


def _decode(text: bytes) -> Any:
    """Return the value of a text. Lines of concatenated files may begin with a byte-order mark. Raises ValueError."""
    return _DECODER.decode(text.decode("utf-8-sig", "surrogatepass"))


def _kind(value: Any) -> str:
    names = {list: "array", str: "string", bool: "boolean", int: "number", float: "number", type(None): "null"}
    return names.get(type(value), type(value).__name__)


def _skip_to_json(stream: BufferedReader) -> bytes:
    """Advance to the first character that is not whitespace, and return it; empty at the end."""
    while (character := stream.peek(1)[:1]).isspace():
        stream.read(1)
    return character


def _read_array(stream: BufferedReader, limit: RowLimit) -> Iterator[dict[str, Any]]:
    """Yield the rows of an array, with little more than one row in memory."""
    window = _Window(stream, limit)
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

    def __init__(self, stream: BufferedReader, limit: RowLimit) -> None:
        self._stream = stream
        self._limit = limit
        self._decode = codecs.getincrementaldecoder("utf-8")().decode
        self._parse = _DECODER.raw_decode
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
        more = self._stream.read(max(self._BLOCK, min(len(held), self._limit.size - len(held))))
        self._ended = not more
        self._text, self._at = held + self._decoded(more, held), 0

    def _decoded(self, more: bytes, held: str) -> str:
        try:
            return self._decode(more, final=self._ended)
        except UnicodeDecodeError as error:
            before = held + error.object[: error.start].decode()
            place = self.place_of(json.JSONDecodeError("", before, len(before)))
            raise DataError(f"The file is not UTF-8 text at {place} ({error.reason}). {SET_ENCODING}") from error


def _read_one_object(file: TextFile, limit: RowLimit) -> Iterator[dict[str, Any]]:
    """Yield the rows of an object of columns, or the object itself. Either is read into memory as a whole."""
    with file.open() as stream:
        text = stream.read(_MAX_COLUMNS_BYTES + 1)
    if len(text) > _MAX_COLUMNS_BYTES:
        raise DataError(
            f"The JSON file is one object and larger than {_MAX_COLUMNS_BYTES // 1024**2} MiB, so it "
            "cannot be read row by row. Write it as JSONL, CSV or Parquet"
        )
    if has_more_values(text, _MAX_VALUES_IN_COLUMNS):
        raise DataError(
            f"The JSON file is one object with more than {_MAX_VALUES_IN_COLUMNS:,} values, so it "
            "cannot be read row by row. Write it as JSONL, CSV or Parquet"
        )
    try:
        value: dict[str, Any] = _decode(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"The file {why_not_json(error)}") from error
    rows = _rows_of_columns(value) if _are_columns(value) else iter([value] if value else [])
    for number, row in enumerate(rows, start=1):
        limit.check_row(row, f"row {number}")
        yield row


def _are_columns(value: dict[str, Any]) -> bool:
    """Return whether every value is an array with one element per row, rather than one conversation."""
    columns = value.values()
    return (
        bool(value) and all(isinstance(column, list) for column in columns) and not any(map(_is_conversation, columns))
    )


def _is_conversation(column: list[Any]) -> bool:
    """Return whether the column is a conversation: messages with different roles."""
    roles = {str(item.get("role", item.get("from"))) if isinstance(item, dict) else "None" for item in column}
    return len(roles) > 1 and "None" not in roles


def _rows_of_columns(columns: dict[str, list[Any]]) -> Iterator[dict[str, Any]]:
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        raise DataError(f"The columns differ in length: {lengths}")
    for values in zip(*columns.values(), strict=True):
        yield dict(zip(columns, values, strict=True))
