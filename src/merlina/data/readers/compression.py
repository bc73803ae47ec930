"""Decompress gzip and zstd files as a stream, in constant memory, with a limit on how far a file may grow."""

from __future__ import annotations

import io
import re
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Literal

from merlina.data.readers.data_files import DataFile, size_of
from merlina.domain.units import MIB
from merlina.errors import DataError, first_line

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

Compression = Literal["gzip", "zstd"]

# Compression shrinks text about ten times. A file that decompresses to 200 times its size is treated as an attack.
MAX_GROWTH = 200
_ALWAYS_ALLOWED = 256 * MIB
_BY_SUFFIX: dict[str, Compression] = {".gz": "gzip", ".zst": "zstd", ".zstd": "zstd"}
_MAGIC: dict[Compression, re.Pattern[bytes]] = {
    "gzip": re.compile(rb"\x1f\x8b\x08"),
    # A frame of data, or one of the 16 kinds of frames that a reader skips.
    "zstd": re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18"),
}
_MAGIC_BYTES = 4


def compression_of(path: DataFile) -> Compression | None:
    """Return the compression by the file's first bytes; None for a file that is not compressed."""
    with path.open("rb") as file:
        head = file.read(_MAGIC_BYTES)
    return next((kind for kind, magic in _MAGIC.items() if magic.match(head)), None)


def split_name(name: str) -> tuple[str, Compression | None]:
    """Return a file name without the suffix of a compression, and the compression that the suffix stands for."""
    suffix = PurePath(name).suffix
    kind = _BY_SUFFIX.get(suffix.lower())
    return (name.removesuffix(suffix), kind) if kind else (name, None)


def max_decompressed(compressed: int) -> int:
    """Return how many bytes a file of `compressed` bytes may decompress to."""
    return max(_ALWAYS_ALLOWED, compressed * MAX_GROWTH)


class DecompressedStream(io.RawIOBase):
    """The decompressed bytes of a file.

    Reading raises DataError if the file ends too early, is damaged, or decompresses to more than 200 times its size.
    """

    def __init__(self, path: DataFile, compression: Compression) -> None:
        import pyarrow

        self._compression = compression
        self._max_bytes = max_decompressed(size_of(path))
        self._bytes = 0
        self._file = path.open("rb")
        self._stream: Any = pyarrow.CompressedInputStream(self._file, compression)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        target = memoryview(buffer).cast("B")
        data = self._read(len(target))
        target[: len(data)] = data
        self._bytes += len(data)
        if self._bytes > self._max_bytes:
            raise DataError(
                f"The {self._compression} file decompresses to more than {MAX_GROWTH} times its size, which is "
                "refused. Decompress it first"
            )
        return len(data)

    def _read(self, size: int) -> bytes:
        import pyarrow

        try:
            return bytes(self._stream.read(size))
        except (pyarrow.ArrowException, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise DataError(self._describe(first_line(error))) from error

    def _describe(self, problem: str) -> str:
        if "truncated" in problem.lower():
            return f"The {self._compression} file ends too early: it is incomplete. Copy or compress it again"
        return f"The {self._compression} file is damaged ({problem}). Copy or compress it again"

    def close(self) -> None:
        self._stream.close()
        self._file.close()
        super().close()
