"""Attention over packs longer than a block of queries, compared with a simple implementation in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers.masking_utils import (
    create_causal_mask,
    create_chunked_causal_mask,
    create_sliding_window_causal_mask,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from merlina.training.engine.attention.pack_attention import NAME, PackedAttention
from merlina.training.engine.packing import Pack, PackedExample, PackingError, build_pack
from tests.training.models import random_model

pytestmark = pytest.mark.slow

# Segments that begin and end within blocks of 128 queries, with prefixes shorter and longer than the windows.
PACK = build_pack(
    [PackedExample([1] * 140, ([1] * 150, [1] * 180)), PackedExample([1] * 20, ([1] * 3, [1] * 200))],
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


def by_hand(given: list[torch.Tensor], pack: Pack, window: int | None, chunk: int | None = None) -> torch.Tensor:
    """Return attention computed row by row, shape [1, N, H, D]."""
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
            if chunk is not None:
                scores[:, :, number, : (segment.prefix + number) // chunk * chunk] = -torch.inf
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


def test_the_callers_window_takes_precedence_over_the_layers() -> None:
    layer = nn.Module()
    layer.sliding_window = 50
    found: Any = ALL_ATTENTION_FUNCTIONS[NAME](layer, *inputs(), None, packed=PackedAttention(PACK, "auto"))
    assert torch.allclose(found[0].double(), by_hand(inputs(torch.float64), PACK, None), atol=1e-6)


@pytest.mark.parametrize("implementation", ["auto", "sdpa", "eager"])
@pytest.mark.parametrize("window", [None, 50, 150, 400])
def test_the_rule_of_a_mask_takes_precedence_over_the_window(implementation: Any, window: int | None) -> None:
    config = random_model(sliding_window=window).config
    config._attn_implementation = NAME
    make = create_causal_mask if window is None else create_sliding_window_causal_mask
    embeddings = torch.zeros(1, PACK.input_ids.shape[1], 32)
    mask = make(config, embeddings, torch.ones_like(PACK.input_ids), cache=None)
    packed = PackedAttention(PACK, implementation)
    found: Any = ALL_ATTENTION_FUNCTIONS[NAME](nn.Module(), *inputs(), mask, sliding_window=7, packed=packed)
    assert torch.allclose(found[0].double(), by_hand(inputs(torch.float64), PACK, window), atol=1e-6)


@pytest.mark.parametrize("implementation", ["auto", "sdpa", "eager"])
def test_chunks_are_counted_from_the_beginning_of_each_text(implementation: Any) -> None:
    config = random_model().config
    config._attn_implementation, config.attention_chunk_size = NAME, 60
    embeddings = torch.zeros(1, PACK.input_ids.shape[1], 32)
    mask = create_chunked_causal_mask(config, embeddings, torch.ones_like(PACK.input_ids), cache=None)
    packed = PackedAttention(PACK, implementation)
    found: Any = ALL_ATTENTION_FUNCTIONS[NAME](nn.Module(), *inputs(), mask, packed=packed)
    assert torch.allclose(found[0].double(), by_hand(inputs(torch.float64), PACK, None, chunk=60), atol=1e-6)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"s_aux": torch.zeros(4)}, "has attention sinks"),
        ({"block_indices": torch.zeros(4)}, "passes block_indices to its attention"),
        ({"is_causal": False}, "lets tokens attend to later ones"),
        ({"dropout": 0.1}, "drops out attention weights"),
        ({"packed": None}, "has attention layers that do not receive"),
    ],
)
def test_unsupported_attention_is_refused_with_a_reason(given: dict[str, Any], reason: str) -> None:
    packed = {"packed": PackedAttention(PACK, "auto")} | given
    with pytest.raises(PackingError, match=reason):
        ALL_ATTENTION_FUNCTIONS[NAME](nn.Module(), *inputs(), None, **packed)


def test_a_mask_that_a_layer_modifies_is_detected() -> None:
    config = random_model().config
    config._attn_implementation = NAME
    embeddings = torch.zeros(1, PACK.input_ids.shape[1], 32)
    mask = create_causal_mask(config, embeddings, torch.ones_like(PACK.input_ids), cache=None)
    with pytest.raises(PackingError, match="builds or modifies attention masks"):
        ALL_ATTENTION_FUNCTIONS[NAME](nn.Module(), *inputs(), mask + 0, packed=PackedAttention(PACK, "auto"))


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
