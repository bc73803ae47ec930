"""Token ids of all pairs of a data set, in flat arrays: four bytes per token instead of about forty in lists.

Example: two pairs, the first with prompt [5, 6], chosen [7] and rejected [8, 9], the second with [5], [4, 4] and [].

    ids     5 6 7 8 9 5 4 4
    ends    2 3 5 | 6 8 8        where the prompt, the chosen and the rejected answer of each pair end
    rows    1 | 2                the pairs' row numbers in the data set
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import overload

import numpy as np
from numpy.typing import NDArray

from merlina.training.models.tokens import TokenPair

_TEXTS = 3
_ENOUGH = 4096


class TokenStore:
    """Collects pairs; `select` returns them as sequences."""

    def __init__(self) -> None:
        # Arrays of the standard library grow in place.
        self._ids = array("i")
        self._ends = array("q")
        self._rows = array("q")

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, pair: TokenPair) -> None:
        for text in (pair.prompt, pair.chosen, pair.rejected):
            self._ids.extend(text)
            self._ends.append(len(self._ids))
        self._rows.append(pair.row)

    @property
    def rows(self) -> NDArray[np.int64]:
        """The row numbers of all pairs in the data set, shape [pairs]."""
        return np.array(self._rows)

    def labels(self, indices: NDArray[np.int64]) -> tuple[int, int]:
        """Return how many of the pairs at `indices` have a chosen answer alone, and how many a rejected one alone."""
        ends = np.array(self._ends).reshape(-1, _TEXTS)[indices]  # [pairs, texts]
        has_chosen, has_rejected = ends[:, 1] > ends[:, 0], ends[:, 2] > ends[:, 1]
        return int((has_chosen & ~has_rejected).sum()), int((~has_chosen & has_rejected).sum())

    def select(self, indices: NDArray[np.int64]) -> StoredPairs:
        """Return the pairs at `indices`, in this order. No pair can be added while they are in use."""
        ids, ends, rows = (np.frombuffer(part, part.typecode) for part in (self._ids, self._ends, self._rows))
        return StoredPairs(ids, np.concatenate(([0], ends)), rows, indices)


class StoredPairs(Sequence[TokenPair]):
    """Pairs of a store; each access makes a TokenPair."""

    def __init__(
        self, ids: NDArray[np.int32], borders: NDArray[np.int64], rows: NDArray[np.int64], indices: NDArray[np.int64]
    ) -> None:
        self._ids = ids
        self._borders = borders  # where each text begins, and the end of the last: three for each pair, and one
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
            return StoredPairs(self._ids, self._borders, self._rows, self._indices[index])
        place = int(self._indices[index])
        first, second, third, end = self._borders[_TEXTS * place : _TEXTS * place + _TEXTS + 1].tolist()
        ids = self._ids
        return TokenPair(
            ids[first:second].tolist(), ids[second:third].tolist(), ids[third:end].tolist(), int(self._rows[place])
        )

    def largest(self, count: int) -> StoredPairs:
        """Return the `count` pairs with the most tokens in all texts together, in the order of the data set."""
        begins = _TEXTS * self._indices
        tokens = self._borders[begins + _TEXTS] - self._borders[begins]
        chosen = np.argpartition(-tokens, count)[:count]
        return StoredPairs(self._ids, self._borders, self._rows, self._indices[np.sort(chosen)])


def largest_pairs(pairs: Sequence[TokenPair]) -> Sequence[TokenPair]:
    """Return all pairs, or the largest of a large store, from which passes as large as any can be made."""
    return pairs.largest(_ENOUGH) if isinstance(pairs, StoredPairs) and len(pairs) > _ENOUGH else pairs
