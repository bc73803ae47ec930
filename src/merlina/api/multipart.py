"""One file out of a multipart body, streamed to disk: memory stays the same whatever its size."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from merlina.errors import InvalidRequestError, TooLargeError

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

_BUFFER_BYTES = 4 * 1024**2
_LARGEST_FRAME = 64 * 1024  # boundaries and headers around the file
_MISSING = "Send the data set as multipart form data, in a part named 'file' with a file name"


async def receive_file(request: Request, target: Path, max_bytes: int) -> str:
    """Writes the body's part named `file` to `target` and returns the file name its sender gave.

    Raises InvalidRequestError where the body has no such part, TooLargeError above `max_bytes`.
    """
    kind, options = parse_options_header(request.headers.get("content-type"))
    if kind != b"multipart/form-data" or b"boundary" not in options:
        raise InvalidRequestError(_MISSING)
    stated = request.headers.get("content-length", "")
    if stated.isdigit() and int(stated) > max_bytes + _LARGEST_FRAME:
        raise TooLargeError(_too_large(max_bytes))
    part = _FilePart()
    with target.open("wb") as file:
        try:
            parser = MultipartParser(options[b"boundary"], part.callbacks())
            async for chunk in request.stream():
                parser.write(chunk)
                if part.size > max_bytes:
                    raise TooLargeError(_too_large(max_bytes))
                if len(part.pending) >= _BUFFER_BYTES:
                    await asyncio.to_thread(file.write, part.take())
            parser.finalize()
        except FormParserError as error:
            raise InvalidRequestError(f"The multipart body is broken: {error}") from error
        await asyncio.to_thread(file.write, part.take())
    if part.filename is None:
        raise InvalidRequestError(_MISSING)
    return part.filename


def _too_large(max_bytes: int) -> str:
    return f"The file is larger than {max_bytes // 1024**2} MB, the limit set by MAX_UPLOAD_SIZE_MB"


class _FilePart:
    """Collects the bytes of the first part named `file`; every other part is read past."""

    def __init__(self) -> None:
        self.pending = bytearray()
        self.size = 0
        self.filename: str | None = None
        self._wanted = False
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

    def take(self) -> bytes:
        taken = bytes(self.pending)
        self.pending.clear()
        return taken

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header = (self._header[0] + data[start:end], self._header[1])

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header = (self._header[0], self._header[1] + data[start:end])

    def _on_header_end(self) -> None:
        name, value = self._header
        if name.lower() == b"content-disposition":
            self._disposition = value
        self._header = (b"", b"")

    def _on_headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        name = options.get(b"filename")
        if self.filename is None and options.get(b"name") == b"file" and name is not None:
            self._wanted = True
            self.filename = Path(name.decode("utf-8", "replace").replace("\\", "/")).name or "upload"

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._wanted:
            self.pending += data[start:end]
            self.size += end - start

    def _on_part_end(self) -> None:
        self._wanted = False
        self._disposition = b""
