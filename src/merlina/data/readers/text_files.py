"""Text files of any supported encoding and compression as streams of UTF-8."""

from __future__ import annotations

import codecs
import io
from dataclasses import dataclass

from merlina.data.readers.compression import Compression, DecompressedStream, compression_of
from merlina.data.readers.data_files import DataFile
from merlina.data.readers.encodings import DetectedEncoding, Utf8Stream, codec_of, detect_encoding
from merlina.schemas.datasets.sources import Encoding

HEAD_BYTES = 1024**2
_BLOCK = 256 * 1024


@dataclass(frozen=True)
class TextFile:
    """A file with its compression and its encoding."""

    path: DataFile
    compression: Compression | None
    encoding: DetectedEncoding

    @staticmethod
    def inspect(path: DataFile, encoding: Encoding | None = None) -> TextFile:
        """Detect the compression, and the encoding unless it is given. Raises DataError for a damaged archive."""
        compression = compression_of(path)
        with _open_bytes(path, compression) as file:
            head = file.read(HEAD_BYTES)
        detected = detect_encoding(head) if encoding is None else DetectedEncoding(codec_of(encoding, head))
        return TextFile(path, compression, detected)

    def open(self) -> io.BufferedReader:
        """Open the text as UTF-8 without byte-order marks. Reading raises DataError where the file is damaged."""
        file = _open_bytes(self.path, self.compression)
        if self.encoding.codec != "utf-8":
            file = io.BufferedReader(Utf8Stream(file, self.encoding.codec), _BLOCK)
        while file.peek(len(codecs.BOM_UTF8)).startswith(codecs.BOM_UTF8):
            file.read(len(codecs.BOM_UTF8))
        return file

    def head(self) -> bytes:
        """Return the first MiB of the text."""
        with self.open() as file:
            return file.read(HEAD_BYTES)


def _open_bytes(path: DataFile, compression: Compression | None) -> io.BufferedReader:
    if compression is None:
        return path.open("rb")
    return io.BufferedReader(DecompressedStream(path, compression), _BLOCK)
