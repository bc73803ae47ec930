"""The layout of a batch: chosen and rejected side by side, padded on the right.

Legend: B pairs, T positions of the longest sequence. Rows 0..B-1 are prompt + chosen, rows B..2B-1 prompt + rejected.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import torch
from torch import Tensor

from merlina.training.tokens import TokenPair

NO_TARGET = -100


class PairBatch(TypedDict):
    """`targets[r, t]` is the token that position t of row r should predict, NO_TARGET where none counts.

    Rows of chosen have targets for prompt and answer, rows of rejected for the answer only; `is_answer` marks answers.
    """

    input_ids: Tensor  # [2B, T] int64
    attention_mask: Tensor  # [2B, T] int64
    targets: Tensor  # [2B, T] int64
    is_answer: Tensor  # [2B, T] bool


class PairCollator:
    """Lays out pairs as one batch; `pad_id` fills what is never looked at."""

    def __init__(self, pad_id: int) -> None:
        self._pad_id = pad_id

    def __call__(self, pairs: Sequence[TokenPair]) -> PairBatch:
        rows = [(pair.prompt, pair.chosen, True) for pair in pairs]
        rows += [(pair.prompt, pair.rejected, False) for pair in pairs]
        length = max(len(prompt) + len(answer) for prompt, answer, _ in rows)
        batch = PairBatch(
            input_ids=torch.full((len(rows), length), self._pad_id),
            attention_mask=torch.zeros((len(rows), length), dtype=torch.int64),
            targets=torch.full((len(rows), length), NO_TARGET),
            is_answer=torch.zeros((len(rows), length), dtype=torch.bool),
        )
        for row, (prompt, answer, is_chosen) in enumerate(rows):
            _lay_out(batch, row, prompt, answer, with_prompt=is_chosen)
        return batch


def pairs_in(batch: PairBatch) -> int:
    """B."""
    return batch["input_ids"].shape[0] // 2


def tokens_in(batch: PairBatch) -> int:
    """Real tokens, the prompt counted in both answers."""
    return int(batch["attention_mask"].sum())


def _lay_out(batch: PairBatch, row: int, prompt: list[int], answer: list[int], *, with_prompt: bool) -> None:
    sequence = torch.tensor(prompt + answer)
    end = len(sequence)
    # Position t predicts token t + 1, so the answer's first target lies at the prompt's last position.
    answer_from = len(prompt) - 1
    targets_from = 0 if with_prompt else answer_from
    batch["input_ids"][row, :end] = sequence
    batch["attention_mask"][row, :end] = 1
    batch["targets"][row, targets_from : end - 1] = sequence[targets_from + 1 :]
    batch["is_answer"][row, answer_from : end - 1] = True
