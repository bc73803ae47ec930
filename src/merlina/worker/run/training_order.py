"""The order of training pairs from several sources, with their weights."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from merlina.schemas.training.config import TrainingConfig

_Indices = NDArray[np.int64]


def training_order(
    config: TrainingConfig, numbers: NDArray[np.int64], is_training: NDArray[np.bool_], begins: Sequence[int]
) -> _Indices:
    """Return the indices of the pairs of an epoch, shape [pairs of an epoch].

    `numbers` are the row numbers of all pairs, shape [pairs], and `is_training` states which of them are trained on.
    `begins[i]` is the number of rows in all sources before source i.

    Example: source a has the pairs 0 to 3 and the weight 1, source b the pairs 4 and 5 and the weight 2. Interleaved,
    the order is 0 4 1 5 2 4 3 5: b's pairs are there twice, and both sources last to the end.
    """
    dataset = config.dataset
    if len(begins) == 1 and dataset.training_parts[0].weight == 1:
        return np.flatnonzero(is_training)
    generator = np.random.default_rng(config.seed)
    source_of = np.searchsorted(begins, numbers, side="left") - 1
    sources = [
        _weighted(np.flatnonzero(is_training & (source_of == index)), part.weight, generator)
        for index, part in enumerate(dataset.training_parts)
    ]
    return _interleaved(sources) if dataset.source_order == "interleave" else np.concatenate(sources)


def _weighted(indices: _Indices, weight: float, generator: np.random.Generator) -> _Indices:
    """Repeat all indices as often as the whole part of the weight, and add a random share of them for the rest.

    Any source with pairs has at least one in an epoch.
    """
    rest = round((weight % 1) * len(indices))
    if weight < 1 and len(indices):
        rest = max(1, rest)
    chosen = np.sort(generator.permutation(len(indices))[:rest])
    return np.concatenate([np.tile(indices, int(weight)), indices[chosen]])


def _interleaved(sources: Sequence[_Indices]) -> _Indices:
    """Merge sources so that each advances at a steady pace and all end together."""
    positions = [(np.arange(len(source)) + 0.5) / max(len(source), 1) for source in sources]
    return np.concatenate(sources)[np.argsort(np.concatenate(positions), kind="stable")]
