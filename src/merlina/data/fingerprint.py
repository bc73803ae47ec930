"""The fingerprint of a run's rows and split, by which a resume detects changed data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from xxhash import xxh3_64

from merlina.data.conversation import Pair
from merlina.data.split import held_out_count
from merlina.schemas.inspection import ROWS_PER_BLOCK, FileStamp, Fingerprint


class FingerprintBuilder:
    """Makes a fingerprint of pairs that are added one at a time. Several pairs of one row count as one usable row."""

    def __init__(self) -> None:
        self._digests: list[xxh3_64] = []
        self._latest: int | None = None
        self.rows = 0

    def add(self, pair: Pair) -> None:
        if pair.number != self._latest:
            if self.rows % ROWS_PER_BLOCK == 0:
                self._digests.append(xxh3_64())
            self.rows, self._latest = self.rows + 1, pair.number
        self._digests[-1].update(_content(pair))

    def finish(self, test_size: float, evaluation: Mapping[str, str] | None = None) -> Fingerprint:
        """Return the fingerprint of all pairs that were added, and of `evaluation`, digests of data sets by name."""
        return Fingerprint(
            rows=self.rows,
            held_out=held_out_count(self.rows, test_size),
            blocks=tuple(digest.hexdigest() for digest in self._digests),
            evaluation=dict(evaluation or {}),
        )

    def digest(self) -> str:
        """Return one digest of all pairs that were added."""
        return "-".join(digest.hexdigest() for digest in self._digests)


def fingerprint(pairs: Iterable[Pair], test_size: float, evaluation: Mapping[str, str] | None = None) -> Fingerprint:
    """Return the fingerprint of all pairs in the order of the file, holding one pair at a time."""
    return _builder_with(pairs).finish(test_size, evaluation)


def digest_of(pairs: Iterable[Pair]) -> str:
    """Return one digest of all pairs in the order of the file, holding one pair at a time."""
    return _builder_with(pairs).digest()


def _builder_with(pairs: Iterable[Pair]) -> FingerprintBuilder:
    builder = FingerprintBuilder()
    for pair in pairs:
        builder.add(pair)
    return builder


def stamp(file: Path) -> FileStamp:
    """Return the file's stamp. Raises OSError if it cannot be read."""
    found = file.stat()
    return FileStamp(size=found.st_size, mtime_ns=found.st_mtime_ns, inode=found.st_ino)


def _content(pair: Pair) -> bytes:
    turns = [(message.role, message.content) for message in pair.prompt]
    chosen, rejected = pair.chosen, pair.rejected
    content = (
        pair.number,
        turns,
        chosen.content if chosen else None,
        rejected.content if rejected else None,
        chosen.reasoning if chosen else None,
    )
    others = [
        (index, turn.reasoning, turn.tool_calls, turn.tool_fields)
        for index, turn in enumerate((*pair.answers, *pair.prompt))
        if (turn.reasoning and (index or chosen is None)) or turn.tool_calls or turn.tool_fields
    ]
    earlier = [
        (place, [(each.role, each.content, each.reasoning, each.tool_calls, each.tool_fields) for each in turn.earlier])
        for place, turn in enumerate(pair.answers)
        if turn.earlier
    ]
    # repr makes the boundaries between the parts unambiguous. What is empty is omitted, as by earlier versions.
    added = [part for part in (others, pair.tools, pair.template_arguments, earlier) if part]
    return repr((*content, *added)).encode("utf-8", "replace")
