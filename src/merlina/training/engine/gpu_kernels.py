"""Triton kernels for what torch would compute in many small operations, each of which reads and writes memory.

Each kernel reads its inputs once (`_target_logprobs` reads them again for the gradient), computes in float32 and writes
its outputs once. `layers`, `adapted_linear` and `output_head` derive the formulas, `_rotate` states its own.
Without a GPU, Triton's interpreter runs the kernels on CPU tensors (environment variable TRITON_INTERPRET=1), which is
how they are tested.

Legend: N positions, I width of a row, F width of a feed-forward, M targets, V vocabulary size, H query heads, K key
heads, D head size; of a norm, c = 1 / RMS(x) and z = d_y * (offset + weight).

Importing this module requires the package `triton`, which comes with torch's CUDA builds. `kernels_for` in
`kernel_choice` decides whether it is used.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

# Elements that one program of an elementwise kernel processes, and logits that one reads at a time.
_ELEMENTS = tl.constexpr(1024)
_LOGITS = 4096
# Activations of a gated feed-forward, as compile-time constants of the kernels.
_SILU, _GELU_TANH, _GELU = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
_ACTIVATIONS = {"silu": 0, "gelu_tanh": 1, "gelu": 2}


def rms_norm(x: Tensor, weight: Tensor, eps: float, offset: float) -> tuple[Tensor, Tensor]:
    """Return c x * (offset + weight), in the shape of x, and c, shape [N], for contiguous x[..., I]."""
    width = x.shape[-1]
    rows, block = x.numel() // width, triton.next_power_of_2(width)
    y, inverse_rms = torch.empty_like(x), torch.empty(rows, dtype=torch.float32, device=x.device)
    _rms_norm[(rows,)](x, weight, y, inverse_rms, width, eps, offset, BLOCK=block, num_warps=_warps(block))
    return y, inverse_rms


def rms_norm_backward(d_y: Tensor, x: Tensor, weight: Tensor, inverse_rms: Tensor, offset: float) -> Tensor:
    """Return d_x = c z - c^3 x mean(x * z), z = d_y * (offset + weight), in the shape of x."""
    width = x.shape[-1]
    d_x, block = torch.empty_like(x), triton.next_power_of_2(width)
    _rms_norm_backward[(inverse_rms.shape[0],)](
        d_y, x, weight, inverse_rms, d_x, width, offset, BLOCK=block, num_warps=_warps(block)
    )
    return d_x


def gated(gate_up: Tensor, activation: str) -> Tensor:
    """Return h = f(g) * v, shape [N, F], for contiguous gate_up[N, 2F], in which g and v lie side by side."""
    rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    hidden = gate_up.new_empty(rows, width)
    _gated[rows, triton.cdiv(width, _ELEMENTS.value)](gate_up, hidden, width, ACTIVATION=_ACTIVATIONS[activation])
    return hidden


def gated_backward(d_hidden: Tensor, gate_up: Tensor, activation: str) -> tuple[Tensor, Tensor]:
    """Return h, in the memory of contiguous d_hidden[N, F], and d_gate_up[N, 2F].

    The halves of d_gate_up are d_g = d_h * v * f'(g) and d_v = d_h * f(g).
    """
    rows, width = d_hidden.shape
    d_gate_up = torch.empty_like(gate_up)
    _gated_backward[rows, triton.cdiv(width, _ELEMENTS.value)](
        d_hidden, gate_up, d_gate_up, width, ACTIVATION=_ACTIVATIONS[activation]
    )
    return d_hidden, d_gate_up


def rotate(queries: Tensor, keys: Tensor, cos: Tensor, sin: Tensor, *, transposed: bool) -> tuple[Tensor, Tensor]:
    """Return rotary embeddings (arXiv 2104.09864, equation 34) of queries[1, H, N, D] and keys[1, K, N, D].

    The results have the same shapes and are stored as [N, H, D] and [N, K, D]. `cos` and `sin` have shape [1, N, D].
    The `transposed` map turns the gradients of the results into those of queries and keys.
    """
    positions, size = queries.shape[2:]
    results = [states.new_empty(positions, states.shape[1], size).transpose(0, 1)[None] for states in (queries, keys)]
    heads, half = max(queries.shape[1], keys.shape[1]), size // 2
    _rotate[positions, 2](
        queries, keys, cos, sin, *results, queries.stride(2), queries.stride(1), keys.stride(2), keys.stride(1),
        cos.stride(1), queries.shape[1], keys.shape[1], half, transposed,
        HEADS=triton.next_power_of_2(heads), BLOCK=triton.next_power_of_2(half), num_warps=4,
    )  # fmt: skip
    return results[0], results[1]


def target_logprobs(logits: Tensor, targets: Tensor, factor: float, *, differentiate: bool) -> Tensor:
    """Return log softmax(factor * logits)[target] for each row of logits[M, V], shape [M], float32.

    With `differentiate`, the logits are overwritten by its gradient, factor * (onehot(target) - softmax).
    """
    result = torch.empty(len(targets), dtype=torch.float32, device=logits.device)
    _target_logprobs[(len(targets),)](
        logits, targets, result, logits.shape[1], logits.stride(0), factor, DIFFERENTIATE=differentiate,
        BLOCK=min(_LOGITS, triton.next_power_of_2(logits.shape[1])), num_warps=8,
    )  # fmt: skip
    return result


def dropped(x: Tensor, seed: int, rate: float) -> Tensor:
    """Return contiguous x with elements replaced by 0 with probability `rate`; the others are not scaled.

    Equal seeds drop the same elements of tensors of one shape, so a mask need not be stored.
    """
    result = torch.empty_like(x)
    _dropped[_programs(x)](x, result, x.numel(), seed, rate)
    return result


def add_dropped(total: Tensor, x: Tensor, seed: int, rate: float) -> None:
    """Add `dropped(x, seed, rate)` to `total` in place."""
    _add_dropped[_programs(x)](total, x, x.numel(), seed, rate)


def _programs(x: Tensor) -> tuple[int]:
    return (triton.cdiv(x.numel(), _ELEMENTS.value),)


def _warps(block: int) -> int:
    """Return the number of warps for a row: 8 elements for each of a warp's 32 threads, up to 16 warps."""
    return max(1, min(16, block // 256))


@triton.jit
def _rms_norm(x, weight, y, inverse_rms, width, eps, offset, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    values = tl.load(x + row * width + columns, mask=inside, other=0.0).to(tl.float32)
    c = 1.0 / tl.sqrt(tl.sum(values * values, 0) / width + eps)
    scale = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32) + offset
    tl.store(inverse_rms + row, c)
    tl.store(y + row * width + columns, (values * c * scale).to(y.dtype.element_ty), mask=inside)


@triton.jit
def _rms_norm_backward(d_y, x, weight, inverse_rms, d_x, width, offset, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    values = tl.load(x + row * width + columns, mask=inside, other=0.0).to(tl.float32)
    z = tl.load(d_y + row * width + columns, mask=inside, other=0.0).to(tl.float32)
    z *= tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32) + offset
    c = tl.load(inverse_rms + row)
    along = tl.sum(values * z, 0) / width * c * c * c
    tl.store(d_x + row * width + columns, (z * c - values * along).to(d_x.dtype.element_ty), mask=inside)


@triton.jit
def _activate(x, ACTIVATION: tl.constexpr):
    """Return f(x) and f'(x)."""
    if ACTIVATION == _SILU:
        sigmoid = tl.sigmoid(x)
        value = x * sigmoid
        slope = sigmoid * (1.0 + x * (1.0 - sigmoid))
    elif ACTIVATION == _GELU_TANH:
        # t = tanh(u) = 2 sigmoid(2 u) - 1 for u = sqrt(2 / pi) (x + 0.044715 x^3)
        tanh = 2.0 * tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x)) - 1.0
        value = 0.5 * x * (1.0 + tanh)
        slope = 0.5 * (1.0 + tanh) + 0.3989422804014327 * x * (1.0 - tanh * tanh) * (1.0 + 0.134145 * x * x)
    else:
        # The cumulative distribution function of the normal distribution, and its density 1 / sqrt(2 pi) exp(-x^2 / 2).
        cumulative = 0.5 * (1.0 + tl.erf(x * 0.7071067811865476))
        value = x * cumulative
        slope = cumulative + x * tl.exp(-0.5 * x * x) * 0.3989422804014327
    return value, slope


@triton.jit
def _gated(gate_up, hidden, width, ACTIVATION: tl.constexpr):
    row, column = tl.program_id(0).to(tl.int64), tl.program_id(1) * _ELEMENTS + tl.arange(0, _ELEMENTS)
    inside = column < width
    gate = gate_up + row * 2 * width + column
    value, _ = _activate(tl.load(gate, mask=inside, other=0.0).to(tl.float32), ACTIVATION)
    v = tl.load(gate + width, mask=inside, other=0.0).to(tl.float32)
    tl.store(hidden + row * width + column, (value * v).to(hidden.dtype.element_ty), mask=inside)


@triton.jit
def _gated_backward(d_hidden, gate_up, d_gate_up, width, ACTIVATION: tl.constexpr):
    row, column = tl.program_id(0).to(tl.int64), tl.program_id(1) * _ELEMENTS + tl.arange(0, _ELEMENTS)
    inside = column < width
    gate = row * 2 * width + column
    value, slope = _activate(tl.load(gate_up + gate, mask=inside, other=0.0).to(tl.float32), ACTIVATION)
    v = tl.load(gate_up + gate + width, mask=inside, other=0.0).to(tl.float32)
    hidden = d_hidden + row * width + column
    d_h = tl.load(hidden, mask=inside, other=0.0).to(tl.float32)
    tl.store(d_gate_up + gate, (d_h * v * slope).to(d_gate_up.dtype.element_ty), mask=inside)
    tl.store(d_gate_up + gate + width, (d_h * value).to(d_gate_up.dtype.element_ty), mask=inside)
    tl.store(hidden, (value * v).to(d_hidden.dtype.element_ty), mask=inside)


@triton.jit
def _rotate(
    queries, keys, cos, sin, rotated_queries, rotated_keys, query_position, query_head, key_position, key_head,
    by_angle, num_queries, num_keys, half, TRANSPOSED: tl.constexpr, HEADS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    position = tl.program_id(0).to(tl.int64)
    if tl.program_id(1) == 0:
        _rotate_heads(
            queries, cos, sin, rotated_queries, position, query_position, query_head, by_angle, num_queries, half,
            TRANSPOSED, HEADS, BLOCK,
        )  # fmt: skip
    else:
        _rotate_heads(
            keys, cos, sin, rotated_keys, position, key_position, key_head, by_angle, num_keys, half,
            TRANSPOSED, HEADS, BLOCK,
        )  # fmt: skip


@triton.jit
def _rotate_heads(
    states, cos, sin, result, position, by_position, by_head, by_angle, heads, half, TRANSPOSED: tl.constexpr,
    HEADS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Rotate all heads of a position, which have the same angles."""
    head, column = tl.arange(0, HEADS)[:, None], tl.arange(0, BLOCK)[None]
    inside = (head < heads) & (column < half)
    first = states + position * by_position + head * by_head + column
    x1 = tl.load(first, mask=inside, other=0.0).to(tl.float32)
    x2 = tl.load(first + half, mask=inside, other=0.0).to(tl.float32)
    angle, is_angle = position * by_angle + column, column < half
    c1 = tl.load(cos + angle, mask=is_angle, other=0.0).to(tl.float32)
    c2 = tl.load(cos + angle + half, mask=is_angle, other=0.0).to(tl.float32)
    s1 = tl.load(sin + angle, mask=is_angle, other=0.0).to(tl.float32)
    s2 = tl.load(sin + angle + half, mask=is_angle, other=0.0).to(tl.float32)
    # y1 = x1 c1 - x2 s1, y2 = x2 c2 + x1 s2; the gradient is the transposed map.
    if TRANSPOSED:
        y1 = x1 * c1 + x2 * s2
        y2 = x2 * c2 - x1 * s1
    else:
        y1 = x1 * c1 - x2 * s1
        y2 = x2 * c2 + x1 * s2
    # The result is laid out as [N, H, D].
    at = result + (position * heads + head) * (2 * half) + column
    tl.store(at, y1.to(result.dtype.element_ty), mask=inside)
    tl.store(at + half, y2.to(result.dtype.element_ty), mask=inside)


@triton.jit
def _target_logprobs(
    logits, targets, result, width, stride, factor, DIFFERENTIATE: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    logits += row * stride
    target = tl.load(targets + row)
    # Read before the reductions below, which all threads must reach before any of them overwrites the logits.
    target_logit = tl.load(logits + target).to(tl.float32) * factor
    # The running maximum and the sum of exponentials relative to it (online softmax, arXiv 1805.02867). The maximum
    # begins at a finite number, since -inf - -inf would be NaN.
    largest = -3.0e38
    total = 0.0
    for begin in range(0, width, BLOCK):
        columns = begin + tl.arange(0, BLOCK)
        z = tl.load(logits + columns, mask=columns < width, other=-float("inf")).to(tl.float32) * factor
        new = tl.maximum(largest, tl.max(z, 0))
        total = total * tl.exp(largest - new) + tl.sum(tl.exp(z - new), 0)
        largest = new
    log_total = largest + tl.log(total)
    tl.store(result + row, target_logit - log_total)
    if DIFFERENTIATE:
        for begin in range(0, width, BLOCK):
            columns = begin + tl.arange(0, BLOCK)
            inside = columns < width
            z = tl.load(logits + columns, mask=inside, other=-float("inf")).to(tl.float32) * factor
            gradient = tl.where(columns == target, 1.0, 0.0) - tl.exp(z - log_total)
            tl.store(logits + columns, (gradient * factor).to(logits.dtype.element_ty), mask=inside)


@triton.jit
def _dropped(x, result, count, seed, rate):
    at = tl.program_id(0).to(tl.int64) * _ELEMENTS + tl.arange(0, _ELEMENTS)
    inside = at < count
    values = tl.load(x + at, mask=inside, other=0.0)
    tl.store(result + at, tl.where(tl.rand(seed, at.to(tl.int32)) >= rate, values, 0.0), mask=inside)


@triton.jit
def _add_dropped(total, x, count, seed, rate):
    at = tl.program_id(0).to(tl.int64) * _ELEMENTS + tl.arange(0, _ELEMENTS)
    inside = at < count
    values = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    sums = tl.load(total + at, mask=inside, other=0.0).to(tl.float32)
    sums += tl.where(tl.rand(seed, at.to(tl.int32)) >= rate, values, 0.0)
    tl.store(total + at, sums.to(total.dtype.element_ty), mask=inside)
