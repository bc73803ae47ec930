"""The fingerprint of a run's rows and split, by which a resume detects changed data."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from xxhash import xxh3_64

from merlina.data.conversation import Pair
from merlina.data.dataset import held_out_count
from merlina.schemas.inspection import ROWS_PER_BLOCK, FileStamp, Fingerprint


def fingerprint(pairs: Iterable[Pair], test_size: float, file: Path | None) -> Fingerprint:
    """Return the fingerprint of all usable pairs in the order of the file, holding one pair at a time."""
    # Before reading: a file that is replaced meanwhile must appear replaced.
    stamped = stamp(file) if file is not None else None
    rows, digests = 0, list[xxh3_64]()
    for pair in pairs:
        if rows % ROWS_PER_BLOCK == 0:
            digests.append(xxh3_64())
        rows += 1
        digests[-1].update(_content(pair))
    blocks = tuple(digest.hexdigest() for digest in digests)
    return Fingerprint(rows=rows, held_out=held_out_count(rows, test_size), blocks=blocks, file=stamped)


def stamp(file: Path) -> FileStamp:
    """Return the file's stamp. Raises OSError if it cannot be read."""
    found = file.stat()
    return FileStamp(size=found.st_size, mtime_ns=found.st_mtime_ns, inode=found.st_ino)


def _content(pair: Pair) -> bytes:
    turns = [(message.role, message.content) for message in pair.prompt]
    rejected = pair.rejected.content if pair.rejected else None
    content = (pair.number, turns, pair.chosen.content, rejected, pair.chosen.reasoning)
    others = [(place, turn.reasoning) for place, turn in enumerate((*pair.answers[1:], *pair.prompt)) if turn.reasoning]
    # repr makes the boundaries between the parts unambiguous. `others` is omitted if empty, as by earlier versions.
    return repr((*content, others) if others else content).encode("utf-8", "replace")
