"""Attention over the segments of a pack by torch's variable-length flash attention, on a GPU in 16 bits.

The kernel takes queries and keys of several sequences, concatenated. Each segment of the pack is a sequence; its keys
are its prefix followed by its own positions, so the keys of a prompt are repeated for each answer after the first.

Legend: H query heads, K key heads, N positions, D head size, S segments, L keys of all segments, R of them repeated.

Worked example: segments 0:3 and 3:5, the second with prefix 0:2.

    key list     0  1  2 | 0  1  3  4      query_begins 0 3 5, key_begins 0 3 7
    own          0  1  2          5  6     where position n is in the key list
    repeated              3  4             entries of the key list that repeat the positions in `prefix`, 0 and 1

A key's gradient is that of its own entry plus those of its repetitions.
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
class KeyLists:
    """The keys of each segment, concatenated, as indices of positions, and where segments begin."""

    keys: Tensor  # [L] int64
    own: Tensor  # [N] int64
    repeated: Tensor  # [R] int64
    prefix: Tensor  # [R] int64
    query_begins: Tensor  # [S + 1] int32
    key_begins: Tensor  # [S + 1] int32
    longest_query: int
    longest_key: int


def key_lists(segments: tuple[Segment, ...], device: torch.device) -> KeyLists:
    """Build the key lists of a pack's segments."""
    keys, own, repeated, prefixes = [], [], [], []
    query_begins, key_begins = [0], [0]
    for segment in segments:
        prefix = np.arange(segment.prefix_begin, segment.prefix_end)
        entries = np.arange(key_begins[-1], key_begins[-1] + segment.prefix + segment.end - segment.begin)
        keys += [prefix, np.arange(segment.begin, segment.end)]
        repeated.append(entries[: segment.prefix])
        own.append(entries[segment.prefix :])
        prefixes.append(prefix)
        query_begins.append(segment.end)
        key_begins.append(key_begins[-1] + len(entries))
    parts = [*map(np.concatenate, (keys, own, repeated, prefixes)), np.array(query_begins), np.array(key_begins)]
    # One transfer for all of them.
    indices = torch.from_numpy(np.concatenate(parts)).to(device).split([len(part) for part in parts])
    return KeyLists(
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
    # It supports neither float32 nor heads whose keys and values have different sizes.
    size = query.shape[-1]
    fits = size == value.shape[-1] <= _LARGEST_HEAD and size % _HEAD_MULTIPLE == 0
    return (
        query.is_cuda
        and fits
        and query.dtype in (torch.bfloat16, torch.float16)
        and torch.cuda.get_device_capability(query.device) >= _CAPABILITY
    )


def flash_attention(
    query: Tensor, key: Tensor, value: Tensor, lists: KeyLists, scale: float, window: int | None
) -> Tensor:
    """Compute attention of query[H, N, D] to key[K, N, D] and value[K, N, D], shape [N, H, D].

    With a window, a query attends to at most `window` keys, its own included.
    """
    result: Tensor = _FlashAttention.apply(query, key, value, lists, scale, window)
    return result


class _FlashAttention(torch.autograd.Function):
    """Flash attention (arXiv 2205.14135) through the operators that torch's own `varlen_attn` calls.

    Called directly because `varlen_attn` accepts grouped key heads and windows only since torch 2.12, and because the
    gradient of the repeated keys needs no sorting here.
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, lists: KeyLists, scale: float, window: int | None
    ) -> Tensor:
        queries = query.transpose(0, 1).contiguous()
        keys, values = (_listed(states.transpose(0, 1), lists) for states in (key, value))
        # The causal mask is aligned to the bottom right: the last query of a segment attends to all of its keys, which
        # include the prefix before them. A window is given as the number of keys before a query's own.
        result, logsumexp, random_state, unused, _ = torch.ops.aten._flash_attention_forward(
            queries, keys, values, *_sequences(lists), 0.0, window is None, False, **_options(scale, window)
        )
        ctx.save_for_backward(queries, keys, values, result, logsumexp, random_state, unused)
        ctx.lists, ctx.scale, ctx.window = lists, scale, window
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        queries, keys, values, result, logsumexp, random_state, unused = ctx.saved_tensors
        d_queries, d_keys, d_values = torch.ops.aten._flash_attention_backward(
            gradients[0].contiguous(), queries, keys, values, result, logsumexp, *_sequences(ctx.lists), 0.0,
            ctx.window is None, random_state, unused, **_options(ctx.scale, ctx.window),
        )  # fmt: skip
        d_key, d_value = (_by_position(d_states, ctx.lists).transpose(0, 1) for d_states in (d_keys, d_values))
        return d_queries.transpose(0, 1), d_key, d_value, None, None, None


def _sequences(lists: KeyLists) -> tuple[Tensor, Tensor, int, int]:
    return lists.query_begins, lists.key_begins, lists.longest_query, lists.longest_key


def _options(scale: float, window: int | None) -> dict[str, Any]:
    left, right = (-1, -1) if window is None else (window - 1, 0)
    return {"scale": scale, "window_size_left": left, "window_size_right": right}


def _listed(keys: Tensor, lists: KeyLists) -> Tensor:
    """Return the key of each entry of the key list, shape [L, K, D], from that of each position."""
    # Without shared prompts, the list has each position once, in order. Values are still copied if they are part of a
    # joint result of q, k and v, all of which would otherwise be kept for the backward pass.
    return keys.index_select(0, lists.keys) if len(lists.repeated) else keys.contiguous()


def _by_position(d_keys: Tensor, lists: KeyLists) -> Tensor:
    """Return the gradient of each position's key, shape [N, K, D], from that of each entry of the key list."""
    if not len(lists.repeated):
        return d_keys
    by_position = d_keys.index_select(0, lists.own)
    return by_position.index_add_(0, lists.prefix, d_keys.index_select(0, lists.repeated))
