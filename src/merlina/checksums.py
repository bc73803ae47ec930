"""Checksums of files."""

from __future__ import annotations

from pathlib import Path

from xxhash import xxh3_128

_BLOCK = 1 << 20


def checksum(path: Path) -> str:
    """Return the checksum of a file's content, XXH3 with 128 bits in hexadecimal. Raises OSError."""
    digest, block = xxh3_128(), memoryview(bytearray(_BLOCK))
    with path.open("rb", buffering=0) as file:
        while read := file.readinto(block):
            digest.update(block[:read])
    return digest.hexdigest()
