"""Fused layers: norms and gated feed-forwards with explicit gradients, and the replacement of a model's layers.

Autograd would store every intermediate of a norm, in float32, and of a feed-forward the two halves, the activation and
their product. These implementations store the input of a norm, and the two halves; they compute the rest again.

A norm or feed-forward is replaced if the result on a trial input is within `_TOLERANCE` of the original one. Adapted
linear layers (`adapted_linear`) are always replaced. `fast_path` compares the whole model afterwards.

Legend: N positions, I inputs, F width of a feed-forward, d_x for the gradient dL/dx, * elementwise.

Gated feed-forward, f being the activation:

    g = gate(x),  v = up(x),  h = f(g) * v,  y = down(h)
    d_v = d_h * f(g),   d_g = d_h * v * f'(g)

    gate and up are computed as one layer, so that g and v lie side by side, [N, 2F]. They are stored; f(g) and h, each
    as large as either, are computed again in the backward pass.

RMS norm with weight w and n = I elements in a row, c = 1 / sqrt(mean(x^2) + eps), z = d_y * w:

    y = c x * w
    d_x = c z - c^3 x mean(x * z)

    Example: x = (3, 4), w = 1, eps = 0, d_y = (1, 0): mean(x^2) = 12.5, c = 0.2828, mean(x * z) = 1.5,
    d_x = (0.2828 - 0.0226 * 4.5, -0.0226 * 6) = (0.181, -0.136). It is orthogonal to x, since y does not depend on
    the length of x.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from transformers import PreTrainedModel

from merlina.training.distributed.sharding import gathered, is_sharded, sharded_layers
from merlina.training.engine.adapted_linear import (
    PassWeights,
    adapted_linear,
    autocast,
    backward_linear,
    forward_linear,
    frozen_linear,
    gradient_of_a,
    in_shape_of,
    interleaved,
    weights_of,
)
from merlina.training.engine.adapter_groups import group_adapters, group_of, is_plain_adapter, ungroup_adapters
from merlina.training.engine.attention.fused_rotary import fuse_rotary, unfuse_rotary
from merlina.training.engine.dropout import DropoutMask, draw_mask, save, saved
from merlina.training.engine.kernel_choice import kernels_for

_TRIAL_POSITIONS = 4
# The largest accepted error on the trial, relative to the largest absolute value of the original output.
_TOLERANCE = 2e-2
_GATED = ("gate_proj", "up_proj", "down_proj")


def fuse_layers(model: PreTrainedModel) -> None:
    """Replace norms, adapted linear layers, gated feed-forwards and rotary embeddings by fused ones, in place."""
    # Dropout would make the two results of a trial differ.
    was_training = model.training
    model.eval()
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            _replace(module, _norm_forwards(module))
    _fuse_adapters(model)
    # A trial of a sharded layer needs its whole weights, so layers are gathered one at a time.
    for layer in sharded_layers(model):
        with gathered(layer):
            for module in layer.modules():
                if _has_gated_adapters(module):
                    _replace(module, _feed_forwards())
    fuse_rotary(model)
    model.train(was_training)


def _fuse_adapters(model: PreTrainedModel) -> None:
    groups, is_whole = group_adapters(model), not is_sharded(model)
    for group in groups:
        # One large product instead of several: worth a copy of the weights only where launching kernels takes time.
        if is_whole and kernels_for(group.weights[0]) is not None:
            group.join()
        for module in group.modules:
            module.forward = types.MethodType(adapted_linear, module)
    if torch.cuda.is_initialized():
        # Releases the memory of the separate weights, in blocks that the joined ones do not fit into.
        torch.cuda.empty_cache()


def unfuse_layers(model: PreTrainedModel) -> None:
    """Restore the original forward method of every layer."""
    for module in model.modules():
        if getattr(module.__dict__.get("forward"), "__module__", None) in (__name__, adapted_linear.__module__):
            del module.forward
    ungroup_adapters(model)
    unfuse_rotary(model)


def _has_gated_adapters(module: nn.Module) -> bool:
    """Return whether a module is a feed-forward with three adapted layers, of which gate and up form a group.

    They do if their scales and dropout rates are equal, as those of every run are.
    """
    projections = [getattr(module, name, None) for name in _GATED]
    return all(map(is_plain_adapter, projections)) and group_of(projections[0]) is group_of(projections[1])


def _feed_forwards() -> list[Callable[[Any, Tensor], Tensor]]:
    """Return a fused gated feed-forward for each activation with a known gradient function."""

    def forward(activation: str) -> Callable[[Any, Tensor], Tensor]:
        def run(module: Any, x: Tensor) -> Tensor:
            if module.gate_proj.merged or (module.gate_proj.disable_adapters and torch.is_grad_enabled()):
                return type(module).forward(module, x)
            x = autocast(x)
            gate_up, down = group_of(module.gate_proj), group_of(module.down_proj)
            if module.gate_proj.disable_adapters:
                # The same kernels as with adapters: the reference must differ from the policy by the adapter alone.
                hidden = _gated(frozen_linear(x.flatten(0, -2), gate_up.frozen()), activation)
                return frozen_linear(hidden, down.frozen()).unflatten(0, x.shape[:-1])
            layers = weights_of(gate_up, x.dtype), weights_of(down, x.dtype)
            # The input of down is as wide as the feed-forward, unlike x.
            masks = (
                draw_mask(gate_up.dropout_rate, x, x.shape[-1]),
                draw_mask(down.dropout_rate, x, module.down_proj.in_features),
            )
            result: Tensor = _FeedForward.apply(x, masks, layers, activation, *gate_up.weights, *down.weights)
            return result

        return run

    return [forward(name) for name in _ACTIVATIONS]


class _FeedForward(torch.autograd.Function):
    """A gated feed-forward with adapters on its three layers; formulas in the module's docstring."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        masks: tuple[DropoutMask | None, DropoutMask | None],
        layers: tuple[PassWeights, PassWeights],
        activation: str,
        *_weights: Tensor,
    ) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        gate_up, inner = forward_linear(rows, masks[0], layers[0])
        y, inner_down = forward_linear(_gated(gate_up, activation), masks[1], layers[1])
        save(ctx, (rows, gate_up, inner, inner_down), masks)
        ctx.layers, ctx.activation = layers, activation
        return in_shape_of(x, y)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (x, gate_up, inner, inner_down), masks = saved(ctx)
        gate_up_weights, down_weights = ctx.layers
        d_y = gradients[0].reshape(-1, gradients[0].shape[-1])
        d_hidden, d_inner_down, d_b_down = backward_linear(d_y, masks[1], inner_down, down_weights)
        # h, which the gradient of down's A needs, is computed again.
        hidden, d_gate_up = _gated_backward(d_hidden, gate_up, ctx.activation)
        d_a_down = gradient_of_a(d_inner_down, hidden, masks[1], down_weights)
        del hidden, d_hidden
        d_x, d_inner, d_b = backward_linear(d_gate_up, masks[0], inner, gate_up_weights)
        d_a = gradient_of_a(d_inner, x, masks[0], gate_up_weights)
        d_adapters = [*interleaved(d_a, d_b), *interleaved(d_a_down, d_b_down)]
        return d_x.view(*gradients[0].shape[:-1], d_x.shape[1]), None, None, None, *d_adapters


def _gated(gate_up: Tensor, activation: str) -> Tensor:
    """Return h = f(g) * v, shape [N, F], for g and v side by side, [N, 2F]."""
    kernels = kernels_for(gate_up)
    if kernels is not None:
        hidden: Tensor = kernels.gated(gate_up, activation)
        return hidden
    gate, up = gate_up.chunk(2, 1)
    return _ACTIVATIONS[activation][0](gate).mul_(up)


def _gated_backward(d_hidden: Tensor, gate_up: Tensor, activation: str) -> tuple[Tensor, Tensor]:
    """Return h, in the memory of d_h, and d_g = d_h * v * f'(g) and d_v = d_h * f(g) side by side, [N, 2F]."""
    kernels = kernels_for(gate_up)
    if kernels is not None:
        hidden, d_gate_up = kernels.gated_backward(d_hidden, gate_up, activation)
        return hidden, d_gate_up
    activate, d_activate = _ACTIVATIONS[activation]
    gate, up = gate_up.chunk(2, 1)
    d_gate_up = torch.empty_like(gate_up)
    d_gate, d_up = d_gate_up.chunk(2, 1)
    activated = activate(gate)
    torch.mul(activated, d_hidden, out=d_up)
    d_activate(d_hidden.mul_(up), gate, d_gate)
    return torch.mul(activated, up, out=d_hidden), d_gate_up


# Each activation f, and a function that writes outer * f'(x) to its last argument.
_ACTIVATIONS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor, Tensor], Tensor]]] = {
    "silu": (F.silu, lambda outer, x, out: torch.ops.aten.silu_backward.grad_input(outer, x, grad_input=out)),
    "gelu_tanh": (
        lambda x: F.gelu(x, approximate="tanh"),
        lambda outer, x, out: torch.ops.aten.gelu_backward.grad_input(outer, x, approximate="tanh", grad_input=out),
    ),
    "gelu": (F.gelu, lambda outer, x, out: torch.ops.aten.gelu_backward.grad_input(outer, x, grad_input=out)),
}


def _norm_forwards(module: Any) -> list[Callable[[Any, Tensor], Tensor]]:
    """Return fused norms that multiply by the weight, and by 1 + weight as Gemma does; none for a trained weight."""
    # Families disagree on the name; only a norm with a frozen weight can be fused.
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    weight = getattr(module, "weight", None)
    if eps is None or weight is None or weight.requires_grad:
        return []

    def forward(offset: float) -> Callable[[Any, Tensor], Tensor]:
        def run(module: Any, x: Tensor) -> Tensor:
            result: Tensor = _RmsNorm.apply(x, module.weight, float(eps), offset)
            return result

        return run

    return [forward(0.0), forward(1.0)]


class _RmsNorm(torch.autograd.Function):
    """Root mean square norm (arXiv 1910.07467, equation 4) with a frozen weight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, offset: float) -> Tensor:
        ctx.offset = offset
        kernels = kernels_for(x)
        if kernels is not None:
            x = x.contiguous()
            y, inverse = kernels.rms_norm(x, weight, eps, offset)
            ctx.save_for_backward(x, weight, inverse)
            return y
        full = x.to(torch.float32, copy=True)
        inverse = full.square().mean(-1, keepdim=True).add_(eps).rsqrt_()  # c [N, 1]
        # x is stored in its own dtype and c as one number per position; autograd would store float32 copies of x.
        ctx.save_for_backward(x, weight, inverse)
        return full.mul_(inverse).mul_(weight.float() + offset).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        x, weight, inverse = ctx.saved_tensors
        kernels = kernels_for(x)
        if kernels is not None:
            return (
                kernels.rms_norm_backward(gradients[0].contiguous(), x, weight, inverse, ctx.offset),
                None,
                None,
                None,
            )
        full = x.float()
        # z = d_y * w
        d_x = gradients[0].to(torch.float32, copy=True).mul_(weight.float() + ctx.offset)
        # -c^3 mean(x * z), the component along x, one number per position
        along = (full * d_x).mean(-1, keepdim=True).mul_(inverse**3).neg_()
        # c z - c^3 x mean(x * z)
        d_x.mul_(inverse).addcmul_(full, along)
        return d_x.to(x.dtype), None, None, None


def _replace(module: Any, candidates: list[Callable[[Any, Tensor], Tensor]]) -> None:
    """Use the candidate that is closest to the module's own result on a trial input, if it is within tolerance.

    Comparing results needs no knowledge of a family: names and attributes of activations and norms differ too much.
    """
    if not candidates:
        return
    weight = getattr(module, "weight", None)
    width = module.gate_proj.in_features if weight is None else weight.shape[0]
    device = next(module.parameters()).device
    dtype = weight.dtype if weight is not None else module.gate_proj.lora_A["default"].weight.dtype
    # Values on both sides of 0, of the size of normed activations.
    trial = torch.linspace(-2, 2, _TRIAL_POSITIONS * width, device=device).view(_TRIAL_POSITIONS, width).to(dtype)
    with torch.no_grad():
        try:
            expected = module(trial)
        except Exception:
            # The layer may need further arguments, or an input of another shape.
            return
        if not isinstance(expected, Tensor):
            return
        errors = [float((candidate(module, trial) - expected).abs().max()) for candidate in candidates]
    closest = min(range(len(candidates)), key=errors.__getitem__)
    if errors[closest] <= _TOLERANCE * float(expected.abs().max()):
        module.forward = types.MethodType(candidates[closest], module)
