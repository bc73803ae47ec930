"""Detect the encoding of text from its first bytes, and convert other encodings to UTF-8 while reading."""

from __future__ import annotations

import codecs
import io
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

from merlina.errors import DataError
from merlina.schemas.datasets.sources import Encoding

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

SET_ENCODING = "Save the file as UTF-8, or set the source's encoding, for example to cp1252"
_BLOCK = 64 * 1024
_NAMES = {"utf-16-le": "UTF-16 (little-endian)", "utf-16-be": "UTF-16 (big-endian)"}
_UTF_16_MARKS = {codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}
# Control characters other than white space, bytes that cp1252 leaves undefined, and 0xff: a letter that hardly any
# text contains, but many binary files do.
_NOT_IN_TEXT = bytes({*range(0x20), 0x7F, 0x81, 0x8D, 0x8F, 0x90, 0x9D, 0xFF} - set(b"\t\n\r\f"))
_RUN = re.compile(rb"[\x80-\xff]+")
_MAX_MEAN_RUN = 1.5


@dataclass(frozen=True)
class DetectedEncoding:
    """The codec of a text; `note` states for the user why it was chosen, None for UTF-8."""

    codec: str
    note: str | None = None


def detect_encoding(head: bytes) -> DetectedEncoding:
    """Return the encoding of a text that begins with `head`; UTF-8 if no other one is plausible."""
    if codec := _UTF_16_MARKS.get(head[:2]):
        return DetectedEncoding(codec, _note(codec, "it begins with the byte-order mark"))
    if codec := _utf_16_without_mark(head):
        return DetectedEncoding(codec, _note(codec, "every other byte of its beginning is NUL"))
    if not is_utf_8(head) and _is_plausibly_cp1252(head):
        lines = head.split(b"\n")
        count = sum(not line.isascii() for line in lines)
        verb = "contains" if count == 1 else "contain"
        reason = f"{count:,} of its first {len(lines):,} lines {verb} characters that are not UTF-8"
        return DetectedEncoding("cp1252", _note("cp1252", reason))
    return DetectedEncoding("utf-8")


def codec_of(encoding: Encoding, head: bytes) -> str:
    """Return the codec of an encoding that the user has set; the beginning of the text decides the order of UTF-16."""
    if encoding != "utf-16":
        return encoding
    return _UTF_16_MARKS.get(head[:2]) or _utf_16_without_mark(head) or "utf-16-le"


def _note(codec: str, reason: str) -> str:
    return f"The file is read as {_NAMES.get(codec, codec)}: {reason}. Set the source's encoding if that is wrong"


def is_utf_8(head: bytes) -> bool:
    """Return whether a text that begins with `head`, which may end within a character, may be UTF-8."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return False
    return True


def _utf_16_without_mark(head: bytes) -> str | None:
    """Return the codec if the first two characters are ASCII in UTF-16 and all others can be decoded without NUL."""
    zeros = [byte == 0 for byte in head[:4]]
    if zeros == [False, True, False, True]:
        codec = "utf-16-le"
    elif zeros == [True, False, True, False]:
        codec = "utf-16-be"
    else:
        return None
    try:
        text = codecs.getincrementaldecoder(codec)().decode(head)
    except UnicodeDecodeError:
        return None
    return None if "\0" in text else codec


def _is_plausibly_cp1252(head: bytes) -> bool:
    """Return whether bytes above 0x7f occur one at a time, as letters with accents do.

    In UTF-8 (here: damaged) and in encodings of other alphabets, such as cp1251 or GBK, they occur in runs.
    """
    if len(head.translate(None, _NOT_IN_TEXT)) < len(head):
        return False
    runs = _RUN.findall(head)
    return sum(map(len, runs)) < _MAX_MEAN_RUN * len(runs)


class Utf8Stream(io.RawIOBase):
    """The text of a stream in another encoding, as UTF-8. Reading raises DataError, which names the line."""

    def __init__(self, stream: BinaryIO, codec: str) -> None:
        self._stream = stream
        self._codec = codec
        self._decode = codecs.getincrementaldecoder(codec)().decode
        self._lines = 0
        self._held = b""
        self._ended = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        target = memoryview(buffer).cast("B")
        while not self._held and not self._ended:
            self._held = self._next_block()
        size = min(len(target), len(self._held))
        target[:size], self._held = self._held[:size], self._held[size:]
        return size

    def _next_block(self) -> bytes:
        block = self._stream.read(_BLOCK)
        self._ended = not block
        try:
            text = self._decode(block, final=self._ended)
        except UnicodeDecodeError as error:
            line = self._lines + error.object[: error.start].decode(self._codec).count("\n") + 1
            raise DataError(
                f"line {line} is not {_NAMES.get(self._codec, self._codec)} text ({error.reason}). {SET_ENCODING}"
            ) from error
        self._lines += text.count("\n")
        return text.encode()

    def close(self) -> None:
        self._stream.close()
        super().close()
