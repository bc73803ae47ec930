"""Streams one file of a multipart body to disk, in constant memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from anyio import CapacityLimiter, to_thread
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from merlina.errors import InvalidRequestError, TimedOutError, TooLargeError

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

_MAX_OVERHEAD = 64 * 1024  # boundaries and headers around the file
_MAX_HEADER = 8 * 1024
_MAX_FILENAME = 255
_MAX_PAUSE_SECONDS = 60
_MISSING = "Send the data set as multipart form data, in a part named 'file' with a file name"


async def receive_file(request: Request, target: Path, max_bytes: int, threads: CapacityLimiter) -> str:
    """Write the body's part named `file` to `target`, in one of the threads, and return the file name it was sent with.

    Raises InvalidRequestError if the body has no such part, TooLargeError above `max_bytes`, TimedOutError if no data
    arrives for a minute, and ClientDisconnect.
    """
    kind, options = parse_options_header(request.headers.get("content-type"))
    if kind != b"multipart/form-data" or b"boundary" not in options:
        raise InvalidRequestError(_MISSING)
    stated = request.headers.get("content-length", "")
    if stated.isdigit() and int(stated) > max_bytes + _MAX_OVERHEAD:
        raise TooLargeError(_too_large(max_bytes))
    part = _FilePart(max_bytes)
    with target.open("wb") as file:
        try:
            parser = MultipartParser(options[b"boundary"], part.callbacks())
            chunks = aiter(request.stream())
            while chunk := await _next(chunks):
                await to_thread.run_sync(partial(part.feed, chunk, parser, file), limiter=threads)
            parser.finalize()
        except FormParserError as error:
            raise InvalidRequestError(f"The multipart body is not valid: {error}") from error
    if part.filename is None:
        raise InvalidRequestError(_MISSING)
    return part.filename


async def _next(chunks: AsyncIterator[bytes]) -> bytes:
    """Return the next chunk of the body, which is empty at its end."""
    try:
        async with asyncio.timeout(_MAX_PAUSE_SECONDS):
            return await anext(chunks, b"")
    except TimeoutError as error:
        raise TimedOutError(f"The upload timed out: no data arrived for {_MAX_PAUSE_SECONDS} seconds") from error


def _too_large(max_bytes: int) -> str:
    return f"The file is larger than {max_bytes // 1024**2} MiB, the limit set by MAX_UPLOAD_SIZE_MB"


class _FilePart:
    """Collects the bytes of the first part named `file` and skips all other parts."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._pending = bytearray()
        self._received = 0
        self.filename: str | None = None
        self._is_file_part = False
        self._header: tuple[bytes, bytes] = (b"", b"")
        self._disposition = b""

    def callbacks(self) -> MultipartCallbacks:
        return {
            "on_header_field": self._on_header_field,
            "on_header_value": self._on_header_value,
            "on_header_end": self._on_header_end,
            "on_headers_finished": self._on_headers_finished,
            "on_part_data": self._on_part_data,
            "on_part_end": self._on_part_end,
        }

    def feed(self, chunk: bytes, parser: MultipartParser, file: BinaryIO) -> None:
        """Write the bytes of the next chunk that belong to the file. Raises TooLargeError and InvalidRequestError."""
        self._received += len(chunk)
        parser.write(chunk)
        file.write(self._pending)
        self._pending.clear()
        if self._received > self._max_bytes + _MAX_OVERHEAD or file.tell() > self._max_bytes:
            raise TooLargeError(_too_large(self._max_bytes))

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header = (_append(self._header[0], data[start:end]), self._header[1])

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header = (self._header[0], _append(self._header[1], data[start:end]))

    def _on_header_end(self) -> None:
        name, value = self._header
        if name.lower() == b"content-disposition":
            self._disposition = value
        self._header = (b"", b"")

    def _on_headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        name = options.get(b"filename")
        if self.filename is None and options.get(b"name") == b"file" and name is not None:
            self._is_file_part = True
            self.filename = _file_name(name.decode("utf-8", "replace"))

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._is_file_part:
            self._pending += data[start:end]

    def _on_part_end(self) -> None:
        self._is_file_part = False
        self._disposition = b""


def _append(header: bytes, more: bytes) -> bytes:
    if len(header) + len(more) > _MAX_HEADER:
        raise InvalidRequestError(f"The multipart body has a header of more than {_MAX_HEADER:,} bytes")
    return header + more


def _file_name(given: str) -> str:
    """Return the last component of a path of any operating system; a long name is shortened before its suffix."""
    name = Path(given.replace("\\", "/").replace("\0", "")).name or "upload"
    return name if len(name) <= _MAX_FILENAME else name[: _MAX_FILENAME - 20] + name[-20:]
