"""Attention over the segments of a pack by torch's variable-length flash attention, on a GPU in 16 bits.

The kernel takes queries and keys of several sequences, concatenated. Each segment of the pack is a sequence; its keys
are its prefix followed by its own positions, so the keys of a prompt are repeated for each answer after the first.

Legend: H query heads, K key heads, N positions, D head size (E that of values where it may differ), S segments, L keys
of all segments, R of them repeated.

Worked example: segments 0:3 and 3:5, the second with prefix 0:2.

    key_positions       0  1  2 | 0  1  3  4    cu_seqlens_q 0 3 5, cu_seqlens_k 0 3 7
    entry_of_position   0  1  2          5  6   the entry of key_positions that holds position n, not as a repetition
    repeated_entries             3  4           the entries that repeat positions of a prefix
    repeated_positions           0  1           these positions

A key's gradient is the sum of the gradients of all entries that hold it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from merlina.training.engine.packing import Segment

# Flash attention needs an Ampere GPU or newer, and supports head sizes up to a limit that are multiples of 8.
_CAPABILITY, _LARGEST_HEAD, _HEAD_MULTIPLE = (8, 0), 256, 8


@dataclass(frozen=True)
class VarlenLayout:
    """The sequences of variable length that the kernel computes, one per segment; fields as in the module's example.

    `cu_seqlens_…` and `max_seqlen_…` are the arguments of torch's operator: where sequences begin in the concatenated
    queries and keys, and the lengths of the longest ones.
    """

    key_positions: Tensor  # [L] int64
    entry_of_position: Tensor  # [N] int64
    repeated_entries: Tensor  # [R] int64
    repeated_positions: Tensor  # [R] int64
    cu_seqlens_q: Tensor  # [S + 1] int32
    cu_seqlens_k: Tensor  # [S + 1] int32
    max_seqlen_q: int
    max_seqlen_k: int


def varlen_layout(segments: tuple[Segment, ...], device: torch.device) -> VarlenLayout:
    """Return the layout of a pack's segments on a device."""
    key_positions, entry_of_position, repeated_entries, repeated_positions = [], [], [], []
    cu_seqlens_q, cu_seqlens_k = [0], [0]
    for segment in segments:
        prefix = np.arange(segment.prefix_begin, segment.prefix_end)
        entries = np.arange(cu_seqlens_k[-1], cu_seqlens_k[-1] + segment.prefix + segment.end - segment.begin)
        key_positions += [prefix, np.arange(segment.begin, segment.end)]
        repeated_entries.append(entries[: segment.prefix])
        entry_of_position.append(entries[segment.prefix :])
        repeated_positions.append(prefix)
        cu_seqlens_q.append(segment.end)
        cu_seqlens_k.append(cu_seqlens_k[-1] + len(entries))
    by_segment = (key_positions, entry_of_position, repeated_entries, repeated_positions)
    parts = [*map(np.concatenate, by_segment), np.array(cu_seqlens_q), np.array(cu_seqlens_k)]
    # One transfer for all of them.
    indices = torch.from_numpy(np.concatenate(parts)).to(device).split([len(part) for part in parts])
    return VarlenLayout(
        indices[0],
        indices[1],
        indices[2],
        indices[3],
        indices[4].int(),
        indices[5].int(),
        max(segment.end - segment.begin for segment in segments),
        max(segment.end - segment.begin + segment.prefix for segment in segments),
    )


def supports_flash_attention(query: Tensor, value: Tensor) -> bool:
    """Return whether the kernel supports device, dtype and head sizes of query[1, H, N, D] and value[1, K, N, E]."""
    # It supports neither float32 nor heads with keys and values of different sizes.
    size = query.shape[-1]
    fits = size == value.shape[-1] <= _LARGEST_HEAD and size % _HEAD_MULTIPLE == 0
    return (
        query.is_cuda
        and fits
        and query.dtype in (torch.bfloat16, torch.float16)
        and torch.cuda.get_device_capability(query.device) >= _CAPABILITY
    )


def flash_attention(
    query: Tensor, key: Tensor, value: Tensor, layout: VarlenLayout, scale: float, window: int | None
) -> Tensor:
    """Compute attention of query[H, N, D] to key[K, N, D] and value[K, N, D], shape [N, H, D].

    With a window, a query attends to at most `window` keys, its own included.
    """
    result: Tensor = _FlashAttention.apply(query, key, value, layout, scale, window)
    return result


class _FlashAttention(torch.autograd.Function):
    """Flash attention (arXiv 2205.14135) through the operators that torch's own `varlen_attn` calls.

    Called directly because the gradients of repeated keys are then added without sorting, and because the GPUs on which
    the engine was verified have torch 2.11, where `varlen_attn` accepts neither grouped key heads nor windows.
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, layout: VarlenLayout, scale: float, window: int | None
    ) -> Tensor:
        queries = query.transpose(0, 1).contiguous()
        keys, values = (_by_entry(states.transpose(0, 1), layout) for states in (key, value))
        # The causal mask is aligned to the bottom right: the last query of a segment attends to all of its keys, which
        # include the prefix before them. A window is given as the number of keys before a query's own.
        result, logsumexp, random_state, unused, _ = torch.ops.aten._flash_attention_forward(
            queries, keys, values, *_sequences(layout), 0.0, window is None, False, **_options(scale, window)
        )
        ctx.save_for_backward(queries, keys, values, result, logsumexp, random_state, unused)
        ctx.layout, ctx.scale, ctx.window = layout, scale, window
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        queries, keys, values, result, logsumexp, random_state, unused = ctx.saved_tensors
        d_queries, d_keys, d_values = torch.ops.aten._flash_attention_backward(
            gradients[0].contiguous(), queries, keys, values, result, logsumexp, *_sequences(ctx.layout), 0.0,
            ctx.window is None, random_state, unused, **_options(ctx.scale, ctx.window),
        )  # fmt: skip
        d_key, d_value = (_by_position(d_states, ctx.layout).transpose(0, 1) for d_states in (d_keys, d_values))
        return d_queries.transpose(0, 1), d_key, d_value, None, None, None


def _sequences(layout: VarlenLayout) -> tuple[Tensor, Tensor, int, int]:
    return layout.cu_seqlens_q, layout.cu_seqlens_k, layout.max_seqlen_q, layout.max_seqlen_k


def _options(scale: float, window: int | None) -> dict[str, Any]:
    left, right = (-1, -1) if window is None else (window - 1, 0)
    return {"scale": scale, "window_size_left": left, "window_size_right": right}


def _by_entry(keys: Tensor, layout: VarlenLayout) -> Tensor:
    """Return the key of each entry of `key_positions`, shape [L, K, D], from that of each position [N, K, D]."""
    # Without shared prompts, each position is one entry, in order. Values are still copied if they are part of a
    # joint result of q, k and v, all of which would otherwise be kept for the backward pass.
    return keys.index_select(0, layout.key_positions) if len(layout.repeated_entries) else keys.contiguous()


def _by_position(d_keys: Tensor, layout: VarlenLayout) -> Tensor:
    """Return the gradient of each position's key, shape [N, K, D], from that of each entry [L, K, D]."""
    if not len(layout.repeated_entries):
        return d_keys
    by_position = d_keys.index_select(0, layout.entry_of_position)
    return by_position.index_add_(0, layout.repeated_positions, d_keys.index_select(0, layout.repeated_entries))
