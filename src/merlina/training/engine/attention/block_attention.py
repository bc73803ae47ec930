"""Attention over the segments of a pack on a CPU: plain matrix products, one block of queries at a time.

At most one block's worth of products above the diagonal is wasted, no tensor of all queries by all keys exists, and
bfloat16 products run at the CPU's full rate, which torch's fused kernels do not reach.

Legend: H query heads, K key heads, G = H / K query heads for each key head, N positions, D head size of queries and
keys, E of values, Q queries of a block, L keys that they attend to.

A segment's *key list* is its prefix followed by its own positions. Worked example with blocks of 2 queries: the segment
4:7 with prefix 0:3 has the key list [0, 1, 2, 4, 5, 6]. Its blocks are

    queries 4, 5   keys 0 to 5 of the list (positions 0 1 2 4 5)    hidden in the last 2 columns: (4, 5)
    query 6        keys 0 to 6 of the list (positions 0 1 2 4 5 6)  nothing hidden

With scores s = scale * q k^T, weights p = softmax(s) and output o = p v, the gradients are (d_x for dL/dx)

    d_v = p^T d_o           d_p = d_o v^T       d_s = p * (d_p - sum over keys of d_p * p)
    d_q = scale * d_s k     d_k = scale * d_s^T q

The weights are computed again in the backward pass instead of being stored.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from merlina.training.engine.packing import Segment

# Queries of a block: fewer make more calls, more make more wasted work above the diagonal.
_QUERIES = 128


@dataclass(frozen=True)
class _Block:
    """Queries `begin` to `end` of the pack, which attend to `first_key` to `last_key` of their segment's key list."""

    begin: int
    end: int
    first_key: int
    last_key: int
    hidden: Tensor  # [Q, Q or L] bool, for the last columns: true for keys after a query or before its window


def block_attention(
    query: Tensor, key: Tensor, value: Tensor, segments: tuple[Segment, ...], scale: float, window: int | None
) -> Tensor:
    """Compute attention of query[H, N, D] to key[K, N, D] and value[K, N, E], shape [N, H, E].

    With a window, a query attends to at most `window` keys, its own included.
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
        if value.untyped_storage().nbytes() > value.nbytes:
            # Part of a joint result of q, k and v, all of which would otherwise be kept for the backward pass.
            value = value.clone(memory_format=torch.contiguous_format)
        heads, positions, size = query.shape[0], query.shape[1], value.shape[2]  # H, N, E
        queries = _grouped(query, key.shape[0])
        result = query.new_empty(positions, heads, size)  # [N, H, E], the order that transformers expects
        by_group = result.view(positions, *queries.shape[:2], size).permute(1, 2, 0, 3)
        for segment in segments:
            keys, values = _key_list(segment, key), _key_list(segment, value)
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
        outer = gradients[0].view(positions, key.shape[0], groups, size).permute(1, 2, 0, 3)  # d_o [K, G, N, E]
        d_query = torch.empty_like(query)
        d_queries = _grouped(d_query, key.shape[0])  # a view, so that blocks write into d_query
        # Every key receives gradients from many blocks. bfloat16 would lose small terms of these sums.
        d_key, d_value = (
            key.new_zeros(key.shape, dtype=torch.float32),
            value.new_zeros(value.shape, dtype=torch.float32),
        )
        for segment in ctx.segments:
            keys, values = _key_list(segment, key), _key_list(segment, value)
            for block in _blocks(segment, ctx.window):
                part = slice(block.first_key, block.last_key)
                rows, d_rows = _rows(queries, block), _rows(outer, block)
                weights = _weights(rows, keys[:, part], ctx.scale, block.hidden)
                d_weights = torch.bmm(d_rows, values[:, part].transpose(1, 2))  # d_p [K, G * Q, L]
                # This function reads its inputs once to compute p * (d_p - sum of d_p * p).
                d_scores = torch._softmax_backward_data(d_weights, weights, -1, weights.dtype)
                d_queries[:, :, block.begin : block.end] = torch.bmm(d_scores, keys[:, part]).unflatten(1, (groups, -1))
                # The products over G * Q rows also sum over the query heads that share a key head.
                _add(d_key, segment, part, torch.bmm(d_scores.transpose(1, 2), rows))
                _add(d_value, segment, part, torch.bmm(weights.transpose(1, 2), d_rows))
        # The scale is applied once to the sums instead of to every block.
        d_query *= ctx.scale
        d_key *= ctx.scale
        return d_query, d_key.to(key.dtype), d_value.to(value.dtype), None, None, None


def _grouped(query: Tensor, key_heads: int) -> Tensor:
    """Group query heads by their key head: [H, N, D] to [K, G, N, D]."""
    return query.unflatten(0, (key_heads, -1))


def _key_list(segment: Segment, keys: Tensor) -> Tensor:
    """Return the keys or values of a segment's key list, shape [K, length of the list, D]."""
    # The prefix is copied, so that one product covers it and the segment's own keys.
    prefix = keys[:, segment.prefix_begin : segment.prefix_end]
    return torch.cat((prefix, keys[:, segment.begin : segment.end]), dim=1)


def _rows(queries: Tensor, block: _Block) -> Tensor:
    """Return a block's queries with the heads of a group below each other, shape [K, G * Q, D]."""
    return queries[:, :, block.begin : block.end].flatten(1, 2)


def _weights(rows: Tensor, keys: Tensor, scale: float, hidden: Tensor) -> Tensor:
    """Return the attention weights, shape [K, G * Q, L], from rows[K, G * Q, D] and keys[K, L, D]."""
    # Scaling the queries is cheaper than scaling the scores, which are usually wider.
    scores = torch.bmm(rows * scale, keys.transpose(1, 2))
    by_query = scores.view(scores.shape[0], -1, hidden.shape[0], scores.shape[2])
    # Only the last columns can be hidden, so only they are written.
    by_query[..., scores.shape[2] - hidden.shape[1] :].masked_fill_(hidden, -torch.inf)
    return torch.softmax(scores, -1)


def _add(total: Tensor, segment: Segment, keys: slice, gradient: Tensor) -> None:
    """Add the gradient[K, L, D] of a range of a segment's key list to the positions of these keys in total[K, N, D]."""
    # The range may begin in the prefix and end in the segment's own keys: it is added in two pieces.
    in_prefix = max(0, min(segment.prefix, keys.stop) - keys.start)
    if in_prefix:
        begin = segment.prefix_begin + keys.start
        total[:, begin : begin + in_prefix] += gradient[:, :in_prefix]
    begin = segment.begin + keys.start + in_prefix - segment.prefix
    total[:, begin : begin + gradient.shape[1] - in_prefix] += gradient[:, in_prefix:]


def _blocks(segment: Segment, window: int | None) -> Iterator[_Block]:
    for begin in range(segment.begin, segment.end, _QUERIES):
        end = min(begin + _QUERIES, segment.end)
        # In the segment's key list: the place of the block's first query, and the end of what its last one attends to.
        first, last = segment.prefix + begin - segment.begin, segment.prefix + end - segment.begin
        first_key = 0 if window is None else max(0, first - window + 1)
        # The window hides nothing if the last query still reaches the first key.
        if window is None or last <= window:
            # All keys before the block are visible, so the triangle of its own keys is enough.
            hidden = _above_diagonal(end - begin)
        else:
            hidden = _outside_window(first - first_key, window)[: end - begin, : last - first_key]
        yield _Block(begin, end, first_key, last, hidden)


@lru_cache(maxsize=_QUERIES)
def _above_diagonal(queries: int) -> Tensor:
    """Return where a key comes after a query of the same block, shape [Q, Q]."""
    return torch.ones(queries, queries, dtype=torch.bool).triu(1)


@lru_cache(maxsize=_QUERIES)
def _outside_window(before: int, window: int) -> Tensor:
    """Return where a key comes after a query or before its window, shape [Q, before + Q].

    The keys begin `before` positions before the first query of a full block.
    """
    # distance[i, j]: how many positions key j is before query i
    distance = torch.arange(before, before + _QUERIES)[:, None] - torch.arange(before + _QUERIES)
    return (distance < 0) | (distance >= window)
