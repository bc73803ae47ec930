"""Fingerprint of the rows and the split of a run, by which a resume detects changed data."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import zip_longest
from pathlib import Path

from pydantic import BaseModel, ConfigDict
from xxhash import xxh3_64

from merlina.data.dataset import held_out_count
from merlina.data.pairs import Pair

_ROWS_PER_BLOCK = 1000


class FileStamp(BaseModel):
    """File metadata that changes when the file is replaced."""

    model_config = ConfigDict(frozen=True)

    size: int
    mtime_ns: int
    inode: int


class Fingerprint(BaseModel):
    """Digest of the usable rows: `blocks` has one entry per 1,000 rows, in order, which covers row numbers too."""

    model_config = ConfigDict(frozen=True)

    rows: int
    held_out: int
    blocks: tuple[str, ...]
    file: FileStamp | None = None

    def difference(self, now: Fingerprint) -> str | None:
        """Return a description of how `now` differs; None if rows and split are the same."""
        found = []
        if now.rows != self.rows:
            found.append(f"{self.rows:,} usable rows when the run started, {now.rows:,} now")
        if now.held_out != self.held_out:
            found.append(f"{self.held_out:,} pairs held out for evaluation then, {now.held_out:,} now")
        differs = (index for index, (a, b) in enumerate(zip_longest(self.blocks, now.blocks)) if a != b)
        first = next(differs, None)
        if first is not None:
            last = min((first + 1) * _ROWS_PER_BLOCK, max(self.rows, now.rows))
            found.append(f"the first difference is in usable rows {first * _ROWS_PER_BLOCK + 1:,} to {last:,}")
        return "; ".join(found) or None


def fingerprint(pairs: Iterable[Pair], test_size: float, file: Path | None) -> Fingerprint:
    """Return the fingerprint of all usable pairs, in the order of the file."""
    # Taken before the rows are read: a file that is replaced meanwhile must not match later.
    stamped = stamp(file) if file is not None else None
    rows, digests = 0, list[xxh3_64]()
    for pair in pairs:
        if rows % _ROWS_PER_BLOCK == 0:
            digests.append(xxh3_64())
        rows += 1
        digests[-1].update(_content(pair))
    blocks = tuple(digest.hexdigest() for digest in digests)
    return Fingerprint(rows=rows, held_out=held_out_count(rows, test_size), blocks=blocks, file=stamped)


def stamp(file: Path) -> FileStamp:
    """Return the file's metadata. Raises OSError if it can't be read."""
    found = file.stat()
    return FileStamp(size=found.st_size, mtime_ns=found.st_mtime_ns, inode=found.st_ino)


def _content(pair: Pair) -> bytes:
    turns = [(message.role, message.content) for message in pair.prompt]
    # repr makes the boundaries between the parts unambiguous.
    return repr((pair.number, turns, pair.chosen, pair.rejected, pair.reasoning)).encode("utf-8", "replace")
