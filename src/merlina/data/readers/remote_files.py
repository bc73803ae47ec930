"""Read files at https://, s3:// and gs:// addresses in blocks, through fsspec."""

from __future__ import annotations

import io
import math
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from merlina.data.readers.remote_errors import (
    IncompleteBlockError,
    ReplacedFileError,
    describe_remote_error,
    is_temporary,
)
from merlina.data.readers.remote_systems import HTTP_HEADERS, REQUEST_SECONDS, file_system
from merlina.domain.data_urls import AllowedUrls, DataUrl, RemoteFile
from merlina.domain.units import MIB
from merlina.errors import DataError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

# Covers what the readers inspect before they read rows: the first MiB, and a little more.
_HEAD_BYTES = MIB + 64 * 1024
_FIRST_BLOCK = MIB
_LARGEST_BLOCK = 8 * MIB
_BUFFER_BYTES = 64 * 1024
# Seconds before each further attempt at a request.
_PAUSES = (0.5, 2.0)
_SECONDS_BETWEEN_CALLS = 0.5
# Within this time, a server that sends nothing is given up: a preview, which may take a minute, then states the cause.
_PATIENCE_SECONDS = 55
# An attempt is up to two requests: fsspec repeats HEAD as GET, and opens an object before it reads it.
_LAST_ATTEMPT_SECONDS = _PATIENCE_SECONDS - 2 * REQUEST_SECONDS
# What changes with the content, by the kind of store.
_VERSION_FIELDS = ("generation", "LastModified", "Last-Modified", "ETag")

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class _Facts:
    """What a server states about a file: its size in bytes, and what identifies its version."""

    size: int
    version: Mapping[str, Any]


class RemoteContent:
    """A file at an address. `open` and `name` are as those of a Path; `size` is in bytes.

    A connection that breaks is opened again and continues where it broke. Reading raises DataError if the file ends
    before its stated size, or if it was replaced since it was first opened. Each request for a block names the version;
    for servers that ignore this, the version is looked up again at the end of the file.

    `while_waiting` is called twice a second while a response is awaited. If it raises an error, the request, which runs
    in a thread of its own, is abandoned.
    """

    def __init__(self, file: RemoteFile, while_waiting: Callable[[], None] | None = None) -> None:
        """Raises DataError if the address is not one that is allowed, or a package to read it is missing."""
        self.url = DataUrl.parse(file.url)
        allowed = AllowedUrls(file.allowed)
        if refusal := allowed.refusal(self.url):
            raise DataError(refusal)
        self._system = file_system(self.url.scheme, allowed)
        self._while_waiting = while_waiting
        self._has_ranges = True
        self._stream: _Forward | None = None
        self._is_checked = True

    @property
    def name(self) -> str:
        """The name of the file in the address."""
        return self.url.file_name

    @property
    def size(self) -> int:
        """The size in bytes. Raises DataError."""
        return self._facts.size

    @cached_property
    def is_seekable(self) -> bool:
        """Whether any part can be read without those before it. Raises DataError."""
        if self._has_ranges and self.size > len(self.head):
            # A server shows only by its response to a range that it does not support them.
            last = self.size - 1
            self._retried(lambda: self._read_range(last, 1), self._place(last))
        return self._has_ranges or self.size == len(self.head)

    def open(self, _mode: Literal["rb"] = "rb") -> io.BufferedReader:
        """Open the file at its beginning. Opening and reading raise DataError."""
        return io.BufferedReader(_RemoteStream(self), _BUFFER_BYTES)

    @cached_property
    def head(self) -> bytes:
        """The beginning of the file, which is read several times to detect how the file is written."""
        return self.fetch(0, min(_HEAD_BYTES, self.size)) if self.size else b""

    def fetch(self, start: int, size: int) -> bytes:
        """Return exactly `size` bytes from offset `start` on. Raises DataError."""
        self._is_checked = False
        return self._retried(lambda: self._read_exactly(start, size), self._place(start))

    def disconnect(self) -> None:
        """Close the connection on which a file without ranges is read; a later read opens another one."""
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()

    def check_unchanged(self) -> None:
        """Raise DataError if a block was read that may be of another version than the file that was first opened."""
        if self._is_checked:
            return
        if self._look_up() != self._facts:
            raise DataError(f"The file at {str(self.url)!r} was replaced while it was being read; try again")
        self._is_checked = True

    def _retried(self, request: Callable[[], _Result], place: str | None = None) -> _Result:
        """Return the result of a request, which is repeated after temporary errors. Raises DataError."""
        begin = time.monotonic()
        for pause in (*_PAUSES, None):
            response = self._awaited(request)
            if (problem := response.exception()) is None:
                return response.result()
            if pause is None or not is_temporary(problem):
                break
            if time.monotonic() + pause > begin + _LAST_ATTEMPT_SECONDS:
                break
            self._wait_for(Future(), pause)
        # Without the cause: a traceback in a log would show the address that a redirect led to, with its signature.
        assert problem is not None
        raise DataError(describe_remote_error(problem, self.url, place))

    def _awaited(self, request: Callable[[], _Result]) -> Future[_Result]:
        """Return the response to a request once it is there."""
        response: Future[_Result] = Future()

        def send() -> None:
            try:
                response.set_result(request())
            except Exception as error:  # the libraries raise errors of many kinds
                response.set_exception(error)

        if self._while_waiting is None:
            send()
        else:
            # The process may end before an abandoned request.
            threading.Thread(target=send, name="request", daemon=True).start()
            self._wait_for(response)
        return response

    def _wait_for(self, response: Future[Any], seconds: float = math.inf) -> None:
        """Wait until the response is there, or for a number of seconds."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if wait([response], min(left, _SECONDS_BETWEEN_CALLS)).done:
                return
            if self._while_waiting is not None:
                self._while_waiting()

    def _place(self, start: int) -> str:
        return f"byte {start:,} of {self.size:,}"

    def _read_exactly(self, start: int, size: int) -> bytes:
        block = self._read_range(start, size)
        if block is None:
            block = self._read_forward(start, size)
        if len(block) < size:
            raise IncompleteBlockError(len(block), size)
        return block

    def _read_range(self, start: int, size: int) -> bytes | None:
        """Return up to `size` bytes from offset `start` on, or None if the server sends no such range."""
        if not self._has_ranges:
            return None
        try:
            self._file.seek(start)
            return bytes(self._file.read(size))
        except FileNotFoundError:
            # The generation does not exist any more, and perhaps no other one.
            if self._facts_in(self._system.info(str(self.url))) == self._facts:
                raise
            raise ReplacedFileError from None
        except ValueError:
            # fsspec raises it when a server sends the whole file instead of a range after its beginning.
            if start == 0 or self.url.is_in_store:
                raise
            self._has_ranges = False
            return None

    def _read_forward(self, start: int, size: int) -> bytes:
        """Return up to `size` bytes from offset `start` on, from a response that has the whole file."""
        if self._stream is None or self._stream.position > start:
            self.disconnect()
            self._stream = _Forward(self._open(block_size=0))
        try:
            self._stream.skip_to(start)
            return self._stream.read(size)
        except Exception:
            # The next attempt opens another connection.
            self.disconnect()
            raise

    @cached_property
    def _file(self) -> Any:
        return self._open(block_size=_FIRST_BLOCK, cache_type="none")

    def _open(self, **options: Any) -> Any:
        """Open the version that was looked up first."""
        url, version = str(self.url), self._facts.version
        if self.url.scheme == "s3":
            # Without a size, s3fs looks up the ETag, and names it in each request.
            file = self._system.open(url, "rb", **options)
            if file.details.get("ETag") != version.get("ETag"):
                raise ReplacedFileError
            return file
        if self.url.scheme == "gs" and "generation" in version:
            url = f"{url}#{version['generation']}"
        if not self.url.is_in_store:
            options["headers"] = {**HTTP_HEADERS, **_condition(version)}
        return self._system.open(url, "rb", size=self.size, **options)

    @cached_property
    def _facts(self) -> _Facts:
        return self._look_up()

    def _look_up(self) -> _Facts:
        """Return the size and the version. Raises DataError."""
        return self._facts_in(self._retried(lambda: self._system.info(str(self.url))))

    def _facts_in(self, info: Mapping[str, Any]) -> _Facts:
        """Return the size and the version that a file system states. Raises DataError."""
        if info["type"] != "file":
            raise DataError(f"{str(self.url)!r} is a folder; name one of its files")
        if info["size"] is None:
            raise DataError(
                f"The server of {str(self.url)!r} does not state the size of the file, without which an incomplete one "
                "could not be recognized; download and upload it instead"
            )
        self._has_ranges = self._has_ranges and info.get("partial", True)
        return _Facts(int(info["size"]), {name: info[name] for name in _VERSION_FIELDS if info.get(name)})


def _condition(version: Mapping[str, Any]) -> dict[str, str]:
    """Return the header by which a server refuses to send another version (RFC 9110, sections 13.1.1 and 13.1.4)."""
    etag = version.get("ETag")
    # Weak ones never match.
    if etag and not etag.startswith("W/"):
        return {"If-Match": etag}
    return {"If-Unmodified-Since": version["Last-Modified"]} if "Last-Modified" in version else {}


class _Forward:
    """The body of one response, of a server that supports no ranges."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self.position = 0

    def skip_to(self, position: int) -> None:
        while self.position < position:
            if not self.read(min(_FIRST_BLOCK, position - self.position)):
                return

    def read(self, size: int) -> bytes:
        """Return `size` bytes, or fewer at the end."""
        parts = []
        while size > 0 and (part := self._file.read(size)):
            parts.append(part)
            size -= len(part)
            self.position += len(part)
        return b"".join(parts)

    def close(self) -> None:
        self._file.close()


class _RemoteStream(io.RawIOBase):
    """A position in the content, with one block around it in memory. Sequential reads use larger and larger blocks."""

    def __init__(self, content: RemoteContent) -> None:
        self._content = content
        self._position = 0
        self._begin = 0
        self._block = content.head
        self._block_size = _FIRST_BLOCK

    def close(self) -> None:
        self._content.disconnect()
        super().close()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._content.size}[whence]
        self._position = base + offset
        return self._position

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        target = memoryview(buffer).cast("B")
        if self._position >= self._content.size:
            self._content.check_unchanged()
            return 0
        if not self._begin <= self._position < self._begin + len(self._block):
            self._load_block()
        at = self._position - self._begin
        data = self._block[at : at + len(target)]
        target[: len(data)] = data
        self._position += len(data)
        return len(data)

    def _load_block(self) -> None:
        is_next = self._position == self._begin + len(self._block)
        self._block_size = min(2 * self._block_size, _LARGEST_BLOCK) if is_next else _FIRST_BLOCK
        self._begin, self._block = self._position, b""
        self._block = self._content.fetch(self._position, min(self._block_size, self._content.size - self._position))
