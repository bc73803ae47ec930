"""Adapted linear layers with explicit gradients.

Autograd would store an adapter's inputs in float32 and cast its weights in each layer of each pass. Here inputs are
stored in the dtype of the pass, layers that read the same input are computed together (`adapter_groups`), and small
products are added to large ones in place.

Legend: N positions, I inputs, O outputs, r rank of an adapter, R the sum of the ranks of a group, d_x for the gradient
dL/dx, * elementwise, m a dropout mask [N, I] of 0 and 1, x~ = x * m. The factor 1 / (1 - p) of dropout is part of the
adapter's scale s.

Adapted linear layer:

    y = x W^T + b + s (x~ A^T) B^T              W[O, I] frozen, A[r, I] and B[O, r] trained
    u = s x~ A^T                                [N, r], `inner` below, stored beside x and, on a CPU, the mask
    d_u = s d_y B                               [N, r], s is a factor of the product and needs no additional operation
    d_B = d_y^T u,   d_A = d_u^T x~
    d_x = d_y W + (d_u A) * m

Worked example with N = I = O = r = 1, no dropout: W = 2, A = 3, B = 5, s = 2, x = 1, d_y = 1. Then u = 6 and
y = 2 + 30 = 32; d_u = 10, d_B = 6, d_A = 10, d_x = 2 + 30 = 32.

In a group of several layers, W, A and B are those of its layers: y and u hold the layers' columns side by side, so that
x~ A^T, d_u A and d_u^T x~ are one product for all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from merlina.training.engine.adapter_groups import AdapterCast, AdapterGroup, FrozenWeight, group_of
from merlina.training.engine.dropout import DropoutMask, draw_mask, save, saved


class PassWeights(NamedTuple):
    """The weights with which a pass computes a group."""

    frozen: tuple[FrozenWeight, ...]
    adapter: AdapterCast
    scale: float


def weights_of(group: AdapterGroup, dtype: torch.dtype) -> PassWeights:
    """Return the weights of a group for a pass in `dtype`."""
    return PassWeights(group.frozen(), group.adapter(dtype), group.scale)


def adapted_linear(module: Any, x: Tensor) -> Tensor:
    """Compute an adapted layer, shape [..., o] for x[..., I]. Replaces the forward method of the module.

    The first layer of a group computes all of them; the others return their part when they are called with the same x.
    """
    # A merged adapter is part of the weight, and adding it again would be wrong.
    if module.merged:
        return type(module).forward(module, x)
    group = group_of(module)
    if len(group.modules) == 1:
        return _compute(group, x)
    known = group.computed_for
    # A layer may have modified its input since; the version counts that.
    if known is None or known[0] is not x or known[1] != x._version or module not in group.results:
        if group.results:
            # Not all layers of the group were called with this input, so computing them together was wasted: split the
            # group. The trial before training triggers this, so gradient checkpointing recomputes every layer with the
            # same grouping.
            group.dissolve()
            return _compute(group_of(module), x)
        # "Unsafe" allows layers to modify the parts in place: nothing else uses the whole.
        results = torch.unsafe_split_with_sizes(_compute(group, x), group.outputs, -1)
        group.computed_for, group.results = (x, x._version), dict(zip(group.modules, results, strict=True))
    result = group.results.pop(module)
    if not group.results:
        group.forget_results()
    return result


def _compute(group: AdapterGroup, x: Tensor) -> Tensor:
    """Return the outputs of all layers of a group side by side, shape [..., O], for x[..., I]."""
    x = autocast(x)
    if group.modules[0].disable_adapters:
        # bitsandbytes' own product rounds differently. The reference must differ from the policy by the adapter alone.
        y = frozen_linear(x.flatten(0, -2), group.frozen())
        return y.unflatten(0, x.shape[:-1])
    mask = draw_mask(group.dropout_rate, x, x.shape[-1])
    result: Tensor = _AdaptedLinear.apply(x, mask, weights_of(group, x.dtype), *group.weights)
    return result


class _AdaptedLinear(torch.autograd.Function):
    """A linear layer with an adapter (LoRA, arXiv 2106.09685, equation 3)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, mask: DropoutMask | None, layer: PassWeights, *_weights: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        # Neither x~ nor the dequantized weight is stored: both are cheap to compute again.
        y, inner = forward_linear(rows, mask, layer)
        save(ctx, (rows, inner), (mask,))
        ctx.layer = layer
        return in_shape_of(x, y)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (x, inner), (mask,) = saved(ctx)
        d_y = gradients[0].reshape(-1, gradients[0].shape[-1])
        d_x, d_inner, d_b = backward_linear(d_y, mask, inner, ctx.layer)
        d_x = d_x.view(*gradients[0].shape[:-1], d_x.shape[1])
        return d_x, None, None, *interleaved(gradient_of_a(d_inner, x, mask, ctx.layer), d_b)


def frozen_linear(x: Tensor, frozen: tuple[FrozenWeight, ...]) -> Tensor:
    """Return x W^T + b, shape [N, O], for x[N, I]."""
    if len(frozen) == 1:
        return _one_frozen_linear(x, frozen[0])
    if torch.is_grad_enabled():
        return torch.cat([_one_frozen_linear(x, each) for each in frozen], 1)
    y = x.new_empty(x.shape[0], sum(each.outputs for each in frozen))
    for each, part in zip(frozen, y.split_with_sizes([each.outputs for each in frozen], 1), strict=True):
        _one_frozen_linear(x, each, part)
    return y


def _one_frozen_linear(x: Tensor, frozen: FrozenWeight, out: Tensor | None = None) -> Tensor:
    weight = frozen.dequantized(x.dtype).t()
    if frozen.bias is None:
        return torch.mm(x, weight, out=out)
    return torch.addmm(frozen.bias.to(x.dtype), x, weight, out=out)


def forward_linear(x: Tensor, mask: DropoutMask | None, layer: PassWeights) -> tuple[Tensor, Tensor]:
    """Return y[N, O] and u[N, R] for x[N, I]."""
    y, adapter = frozen_linear(x, layer.frozen), layer.adapter
    # u = s x~ A^T. The scale of the adapter includes 1 / (1 - p), so the mask itself is 0 or 1.
    inner = x.new_empty(x.shape[0], adapter.a.shape[0])
    inner.addmm_(x if mask is None else mask.apply(x), adapter.a.t(), beta=0, alpha=layer.scale)
    columns = _columns(y, adapter.outputs), _columns(inner, adapter.ranks)
    for y_part, inner_part, b in zip(*columns, adapter.b, strict=True):
        # y += u B^T in place, without a second tensor [N, O]
        y_part.addmm_(inner_part, b.t())
    return y, inner


def backward_linear(
    d_y: Tensor, mask: DropoutMask | None, inner: Tensor, layer: PassWeights
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Return the gradients of x, of u and of each B for d_y[N, O]."""
    adapter = layer.adapter
    d_inner = torch.empty_like(inner)
    d_b = []
    columns = (
        _columns(d_y, adapter.outputs), _columns(inner, adapter.ranks), _columns(d_inner, adapter.ranks)
    )  # fmt: skip
    for d_y_part, inner_part, d_inner_part, b in zip(*columns, adapter.b, strict=True):
        # d_u = s d_y B
        d_inner_part.addmm_(d_y_part, b, beta=0, alpha=layer.scale)
        d_b.append(_outer_sum(d_y_part, inner_part))  # d_B = d_y^T u
    # d_x = d_y W + (d_u A) * m
    parts = _columns(d_y, [each.outputs for each in layer.frozen])
    d_x = torch.mm(parts[0], layer.frozen[0].dequantized(d_y.dtype))
    for frozen, part in zip(layer.frozen[1:], parts[1:], strict=True):
        d_x.addmm_(part, frozen.dequantized(d_y.dtype))
    if mask is None:
        d_x.addmm_(d_inner, adapter.a)
    else:
        mask.add(d_x, torch.mm(d_inner, adapter.a))
    return d_x, d_inner, d_b


def gradient_of_a(d_inner: Tensor, x: Tensor, mask: DropoutMask | None, layer: PassWeights) -> tuple[Tensor, ...]:
    """Return the gradient of each A, d_u^T x~, for d_inner[N, R] and x[N, I]."""
    whole = _outer_sum(d_inner, x if mask is None else mask.apply(x))
    # Rows of one tensor, which become the weights' gradients without a copy.
    return whole.split(layer.adapter.ranks) if len(layer.adapter.ranks) > 1 else (whole,)


def interleaved(d_a: tuple[Tensor, ...], d_b: list[Tensor]) -> list[Tensor]:
    """Return gradients in the order of `AdapterGroup.weights`."""
    return [gradient for pair in zip(d_a, d_b, strict=True) for gradient in pair]


def in_shape_of(x: Tensor, y: Tensor) -> Tensor:
    """Give y[N, O], the result of a custom function, the shape [..., O] of its input x[..., I], in place."""
    # A view would not do: autograd forbids layers to modify a view that a custom function returned.
    return y.resize_(*x.shape[:-1], y.shape[1])


def autocast(x: Tensor) -> Tensor:
    """Cast to the dtype of autocast if it is enabled, since custom functions are not autocast."""
    kind = x.device.type
    return x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x


def _columns(tensor: Tensor, widths: list[int]) -> Sequence[Tensor]:
    """Return adjacent columns of a matrix, `widths` of them at a time."""
    return tensor.split_with_sizes(widths, 1) if len(widths) > 1 else (tensor,)


def _outer_sum(left: Tensor, right: Tensor) -> Tensor:
    """Return left^T right, shape [p, q], for left[N, p] and right[N, q]; float32, as gradients of trained weights."""
    if left.is_cuda and left.dtype != torch.float32:
        return torch.mm(left.t(), right, out_dtype=torch.float32)
    # On a CPU, products with few rows are faster than products with few columns.
    if left.shape[1] > right.shape[1]:
        return (right.t() @ left).float().t()
    return (left.t() @ right).float()
