"""Token ids of all pairs of a data set, in flat arrays: four bytes per token instead of about forty in lists.

Example: two pairs, the first with prompt [5, 6], chosen [7] and rejected [8, 9], the second with [5], [4, 4] and [].

    ids     5 6 7 8 9 5 4 4
    ends    2 3 5 | 6 8 8        where the sections of each pair end: the prompt, the chosen and the rejected answer
    rows    1 | 2                the pairs' row numbers in the data set

A store with a file moves its ids there whenever they reach 16 MiB, and maps the file into memory: RAM holds the ids in
use.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import overload

import numpy as np
from numpy.typing import NDArray

from merlina.training.models.tokens import TokenPair

_SECTIONS = 3
_MAX_PROBED_PAIRS = 4096
_IDS_IN_RAM = 4 * 1024**2


class TokenStore:
    """Collects pairs; `select` returns them as sequences.

    Once there are more ids than it holds in RAM, it creates the folder of `file` and replaces the file. Raises OSError
    if that fails.
    """

    def __init__(self, file: Path | None = None) -> None:
        self._file = file
        # Arrays of the standard library grow in place.
        self._ids = array("i")
        self._ends = array("q")
        self._rows = array("q")
        self._ids_in_file = 0

    @staticmethod
    def reopen(file: Path, ends: NDArray[np.int64], rows: NDArray[np.int64]) -> TokenStore:
        """Return the store that wrote this file, with its `ends` and `rows`."""
        store = TokenStore(file)
        store._ends.frombytes(ends.tobytes())
        store._rows.frombytes(rows.tobytes())
        store._ids_in_file = int(ends[-1])
        return store

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, pair: TokenPair) -> None:
        """Add a pair at the end. Raises OSError if the file cannot be written."""
        for section in (pair.prompt, pair.chosen, pair.rejected):
            self._ids.fromlist(section)
            self._ends.append(self._ids_in_file + len(self._ids))
        self._rows.append(pair.row)
        if self._file is not None and len(self._ids) >= _IDS_IN_RAM:
            self._move_to(self._file)

    @property
    def ends(self) -> NDArray[np.int64]:
        """Where each section of each pair ends, shape [3 * pairs]."""
        return np.array(self._ends)

    @property
    def is_in_file(self) -> bool:
        """Whether there are more ids than are held in RAM, so that `close_file` leaves all of them in the file."""
        return self._ids_in_file > 0

    def close_file(self) -> None:
        """Move the remaining ids to the file, if there is one. No pair can be added afterwards."""
        if self._file is not None and self.is_in_file and self._ids:
            self._move_to(self._file)

    @property
    def rows(self) -> NDArray[np.int64]:
        """The row numbers of all pairs in the data set, shape [pairs]."""
        return np.array(self._rows)

    def labels(self, indices: NDArray[np.int64]) -> tuple[int, int]:
        """Return how many of the pairs at `indices` have a chosen answer alone, and how many a rejected one alone."""
        ends = self.ends.reshape(-1, _SECTIONS)[indices]  # [pairs, sections]
        has_chosen, has_rejected = ends[:, 1] > ends[:, 0], ends[:, 2] > ends[:, 1]
        return int((has_chosen & ~has_rejected).sum()), int((~has_chosen & has_rejected).sum())

    def select(self, indices: NDArray[np.int64]) -> StoredPairs:
        """Return the pairs at `indices`, in this order. No pair can be added while they are in use."""
        ends, rows = (np.frombuffer(part, part.typecode) for part in (self._ends, self._rows))
        return StoredPairs(self._all_ids(), np.concatenate(([0], ends)), rows, indices)

    def _all_ids(self) -> NDArray[np.int32]:
        self.close_file()
        if self._file is not None and self.is_in_file:
            return np.memmap(self._file, np.int32, "r")
        return np.frombuffer(self._ids, self._ids.typecode)

    def _move_to(self, file: Path) -> None:
        file.parent.mkdir(mode=0o700, exist_ok=True)
        with file.open("ab" if self.is_in_file else "wb") as stream:
            self._ids.tofile(stream)
        self._ids_in_file += len(self._ids)
        self._ids = array("i")


class StoredPairs(Sequence[TokenPair]):
    """Pairs of a store; each access makes a TokenPair."""

    def __init__(
        self, ids: NDArray[np.int32], offsets: NDArray[np.int64], rows: NDArray[np.int64], indices: NDArray[np.int64]
    ) -> None:
        self._ids = ids
        self._offsets = offsets  # of the sections in `ids`, and the end of the last: shape [3 * pairs + 1]
        self._rows = rows
        self._indices = indices

    def __len__(self) -> int:
        return len(self._indices)

    @overload
    def __getitem__(self, index: int) -> TokenPair: ...
    @overload
    def __getitem__(self, index: slice) -> StoredPairs: ...

    def __getitem__(self, index: int | slice) -> TokenPair | StoredPairs:
        if isinstance(index, slice):
            return StoredPairs(self._ids, self._offsets, self._rows, self._indices[index])
        pair = int(self._indices[index])
        first, second, third, end = self._offsets[_SECTIONS * pair : _SECTIONS * pair + _SECTIONS + 1].tolist()
        ids = self._ids
        return TokenPair(
            ids[first:second].tolist(), ids[second:third].tolist(), ids[third:end].tolist(), int(self._rows[pair])
        )

    def largest(self, count: int) -> StoredPairs:
        """Return the `count` pairs with the most tokens in all sections together, in the order of the data set."""
        begins = _SECTIONS * self._indices
        tokens = self._offsets[begins + _SECTIONS] - self._offsets[begins]
        chosen = np.argpartition(-tokens, count)[:count]
        return StoredPairs(self._ids, self._offsets, self._rows, self._indices[np.sort(chosen)])


def largest_pairs(pairs: Sequence[TokenPair]) -> Sequence[TokenPair]:
    """Return the pairs from which the largest passes can be made: all, or the 4,096 largest of a larger store."""
    if isinstance(pairs, StoredPairs) and len(pairs) > _MAX_PROBED_PAIRS:
        return pairs.largest(_MAX_PROBED_PAIRS)
    return pairs
