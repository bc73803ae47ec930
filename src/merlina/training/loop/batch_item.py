"""An item of the Trainer's batches."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from merlina.training.engine.packing import PackedExample


@dataclass(frozen=True)
class BatchItem:
    """An item of the Trainer's batches: a pair with its row number and what the objective needs of the reference.

    `reference` holds the reference's log-probability of each answer. `unrelated` is the prompt with the answer of
    another pair, and `unrelated_reference` the reference's log-probability of that answer. `label` is that of an
    unpaired answer. Each is None if the objective does not need it.
    """

    example: PackedExample
    row: int = 0
    reference: Tensor | None = None  # [A]
    unrelated: PackedExample | None = None
    unrelated_reference: Tensor | None = None  # scalar
    label: bool | None = None
