"""Attention over the segments of a pack as plain matrix products, block of queries by block of queries.

For processors: no work is done above the diagonal beyond one block, nothing of the size of all queries by all keys
exists, and bfloat16 products run at the processor's own rate, which the fused kernels of torch don't reach there.

Legend: H query heads, K key heads, G = H / K, N positions, D head size of queries and keys, E of values, Q queries of a
block, L keys they see.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from merlina.training.engine.packing import Segment

# Fewer queries cost more calls, more of them more work above the diagonal.
_QUERIES = 128


@dataclass(frozen=True)
class _Block:
    """Queries `begin` to `end` of the pack see keys `first_key` to `last_key` of their segment's own key list."""

    begin: int
    end: int
    first_key: int
    last_key: int
    hidden: Tensor  # [Q, Q or L] bool, of the last columns: keys that are after a query or before its window


def block_attention(
    query: Tensor, key: Tensor, value: Tensor, segments: tuple[Segment, ...], scale: float, window: int | None
) -> Tensor:
    """query[H, N, D], key[K, N, D], value[K, N, E] -> [N, H, E]

    With a window a query sees so many keys at most, its own included.
    """
    result: Tensor = _BlockAttention.apply(query, key, value, segments, scale, window)
    return result


class _BlockAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        segments: tuple[Segment, ...],
        scale: float,
        window: int | None,
    ) -> Tensor:
        heads, positions, size = query.shape[0], query.shape[1], value.shape[2]
        queries = _grouped(query, key.shape[0])
        result = query.new_empty(positions, heads, size)
        by_group = result.view(positions, *queries.shape[:2], size).permute(1, 2, 0, 3)
        for segment in segments:
            keys, values = _seen_by(segment, key), _seen_by(segment, value)
            for block in _blocks(segment, window):
                part = slice(block.first_key, block.last_key)
                weights = _weights(_rows(queries, block), keys[:, part], scale, block.hidden)
                by_group[:, :, block.begin : block.end] = torch.bmm(weights, values[:, part]).unflatten(
                    1, (queries.shape[1], -1)
                )
        ctx.save_for_backward(query, key, value)
        ctx.segments, ctx.scale, ctx.window = segments, scale, window
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        query, key, value = ctx.saved_tensors
        queries = _grouped(query, key.shape[0])
        groups, positions, size = queries.shape[1], query.shape[1], value.shape[2]
        outer = gradients[0].view(positions, key.shape[0], groups, size).permute(1, 2, 0, 3)
        d_query = torch.empty_like(query)
        d_queries = _grouped(d_query, key.shape[0])
        # Each key is met by many blocks: sums of many small bfloat16 terms are kept in float32.
        d_key, d_value = (
            key.new_zeros(key.shape, dtype=torch.float32),
            value.new_zeros(value.shape, dtype=torch.float32),
        )
        for segment in ctx.segments:
            keys, values = _seen_by(segment, key), _seen_by(segment, value)
            for block in _blocks(segment, ctx.window):
                part = slice(block.first_key, block.last_key)
                rows, d_rows = _rows(queries, block), _rows(outer, block)
                weights = _weights(rows, keys[:, part], ctx.scale, block.hidden)
                d_weights = torch.bmm(d_rows, values[:, part].transpose(1, 2))
                d_scores = torch._softmax_backward_data(d_weights, weights, -1, weights.dtype)
                d_queries[:, :, block.begin : block.end] = torch.bmm(d_scores, keys[:, part]).unflatten(1, (groups, -1))
                _add(d_key, segment, part, torch.bmm(d_scores.transpose(1, 2), rows))
                _add(d_value, segment, part, torch.bmm(weights.transpose(1, 2), d_rows))
        d_query *= ctx.scale
        d_key *= ctx.scale
        return d_query, d_key.to(key.dtype), d_value.to(value.dtype), None, None, None


def _grouped(query: Tensor, key_heads: int) -> Tensor:
    """[H, N, D] -> [K, G, N, D]"""
    return query.unflatten(0, (key_heads, -1))


def _seen_by(segment: Segment, keys: Tensor) -> Tensor:
    """[K, N, D] -> the keys of the segment's prefix and its own, [K, prefix + own, D]"""
    own = keys[:, segment.begin : segment.end]
    return torch.cat((keys[:, segment.prefix_begin : segment.prefix_end], own), dim=1)


def _rows(queries: Tensor, block: _Block) -> Tensor:
    """[K, G, N, D] -> the block's, [K, G * Q, D]"""
    return queries[:, :, block.begin : block.end].flatten(1, 2)


def _weights(rows: Tensor, keys: Tensor, scale: float, hidden: Tensor) -> Tensor:
    """rows[K, G * Q, D], keys[K, L, D] -> softmax of the scores, [K, G * Q, L]"""
    scores = torch.bmm(rows * scale, keys.transpose(1, 2))
    by_query = scores.view(scores.shape[0], -1, hidden.shape[0], scores.shape[2])
    by_query[..., scores.shape[2] - hidden.shape[1] :].masked_fill_(hidden, -torch.inf)
    return torch.softmax(scores, -1)


def _add(total: Tensor, segment: Segment, keys: slice, gradient: Tensor) -> None:
    """Adds what belongs to a segment's key list, gradient[K, L, D], to where those keys are, total[K, N, D]."""
    in_prefix = max(0, min(segment.prefix, keys.stop) - keys.start)
    if in_prefix:
        begin = segment.prefix_begin + keys.start
        total[:, begin : begin + in_prefix] += gradient[:, :in_prefix]
    begin = segment.begin + keys.start + in_prefix - segment.prefix
    total[:, begin : begin + gradient.shape[1] - in_prefix] += gradient[:, in_prefix:]


def _blocks(segment: Segment, window: int | None) -> Iterator[_Block]:
    for begin in range(segment.begin, segment.end, _QUERIES):
        end = min(begin + _QUERIES, segment.end)
        # Of the segment's own key list: where the block's first query stands, and what its last one sees.
        first, last = segment.prefix + begin - segment.begin, segment.prefix + end - segment.begin
        first_key = 0 if window is None else max(0, first - window + 1)
        if window is None or last <= window:
            hidden = _after(end - begin)
        else:
            hidden = _outside(first - first_key, window)[: end - begin, : last - first_key]
        yield _Block(begin, end, first_key, last, hidden)


@lru_cache(maxsize=_QUERIES)
def _after(queries: int) -> Tensor:
    """[Q, Q], where the key comes after the query"""
    return torch.ones(queries, queries, dtype=torch.bool).triu(1)


@lru_cache(maxsize=_QUERIES)
def _outside(before: int, window: int) -> Tensor:
    """[Q, before + Q] of a whole block, the first of whose queries comes after so many keys of the block: where the key
    comes after the query or before its window"""
    distance = torch.arange(before, before + _QUERIES)[:, None] - torch.arange(before + _QUERIES)
    return (distance < 0) | (distance >= window)
