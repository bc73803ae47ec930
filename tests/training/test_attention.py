"""Attention over packs longer than a block of queries, against each text's own in float64 by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from merlina.training.attention import NAME, PackedAttention
from merlina.training.packing import Pack, SharedPrompt, lay_out

# Segments that begin and end amidst blocks of 128 queries, with prefixes shorter and longer than the windows.
PACK = lay_out(
    [SharedPrompt([1] * 140, ([1] * 150, [1] * 180)), SharedPrompt([1] * 20, ([1] * 3, [1] * 200))],
    with_prompt_targets=False,
)
HEADS, KEY_HEADS, SIZE = 4, 2, 8


def inputs(dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    """Query, key and value."""
    draw = torch.Generator().manual_seed(0)
    shapes = [(1, heads, PACK.input_ids.shape[1], SIZE) for heads in (HEADS, KEY_HEADS, KEY_HEADS)]
    return [torch.randn(shape, generator=draw).to(dtype).requires_grad_() for shape in shapes]


def attend(given: list[torch.Tensor], packed: PackedAttention, window: int | None) -> torch.Tensor:
    result: Any = ALL_ATTENTION_FUNCTIONS[NAME](nn.Module(), *given, None, sliding_window=window, packed=packed)
    return result[0]


def by_hand(given: list[torch.Tensor], pack: Pack, window: int | None) -> torch.Tensor:
    """[1, N, H, D]"""
    query, key, value = given
    key, value = (tensor.repeat_interleave(HEADS // KEY_HEADS, dim=1) for tensor in (key, value))
    rows = []
    for segment in pack.segments:
        seen = [*range(segment.prefix_begin, segment.prefix_end), *range(segment.begin, segment.end)]
        scores = query[:, :, segment.begin : segment.end] @ key[:, :, seen].transpose(2, 3) / SIZE**0.5
        for number in range(scores.shape[2]):
            scores[:, :, number, segment.prefix + number + 1 :] = -torch.inf
            if window is not None:
                scores[:, :, number, : max(0, segment.prefix + number + 1 - window)] = -torch.inf
        rows.append(scores.softmax(-1) @ value[:, :, seen])
    return torch.cat(rows, dim=2).transpose(1, 2)


@pytest.mark.parametrize("implementation", ["auto", "sdpa", "eager"])
@pytest.mark.parametrize("window", [None, 50, 150])
def test_outputs_and_gradients_are_those_of_float64_by_hand(implementation: Any, window: int | None) -> None:
    ours, theirs = inputs(), inputs(torch.float64)
    found = attend(ours, PackedAttention(PACK, implementation), window)
    expected = by_hand(theirs, PACK, window)
    assert torch.allclose(found.double(), expected, atol=1e-6)
    outer = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    found.backward(outer)
    expected.backward(outer.double())
    for mine, other in zip(ours, theirs, strict=True):
        assert torch.allclose(mine.grad.double(), other.grad, atol=1e-5)


def test_all_layers_with_one_window_keep_one_mask() -> None:
    packed, kept = PackedAttention(PACK, "sdpa"), set()
    positions = PACK.input_ids.shape[1]

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.shape[-2:] == (positions, positions):
            kept.add(tensor.untyped_storage().data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        layers = [attend(inputs(), packed, window) for window in (None, 50, None, 50, None)]
    assert len(layers) == 5
    assert len(kept) == 2
