"""Fused layers: norms and gated feed-forwards with explicit gradients, and the replacement of a model's layers.

Autograd would store every intermediate of a norm, in float32, and of a feed-forward the two halves, the activation and
their product. These implementations store the input of a norm, and the two halves; they compute the rest again.

A norm or feed-forward is replaced if the result on a trial input is within `_TOLERANCE` of its own; adapted linear
layers (`adapted_linear`) always are. `fast_path` compares the whole model afterwards.

Legend: N positions, I inputs, d_x for the gradient dL/dx, * elementwise.

Gated feed-forward, f being the activation:

    g = gate(x),  v = up(x),  h = f(g) * v,  y = down(h)
    d_v = d_h * f(g),   d_g = d_h * v * f'(g)       and d_x is the sum of what gate and up return

    g and v are stored; f(g) and h, each as large as either, are computed again in the backward pass.

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
from torch import Tensor
from transformers import PreTrainedModel

from merlina.training.distributed.sharding import gathered, sharded_layers
from merlina.training.engine.adapted_linear import (
    AdaptedLayer,
    DropoutMask,
    adapted_layer,
    adapted_linear,
    adapter_weights,
    autocast,
    backward_linear,
    dropout_mask,
    forward_linear,
    is_plain_adapter,
    save,
    saved,
)
from merlina.training.engine.fused_rotary import fuse_rotary, unfuse_rotary
from merlina.training.engine.kernel_choice import kernels_for

_TRIAL_POSITIONS = 4
# The largest accepted error on the trial, relative to the largest absolute value of the layer's own output.
_TOLERANCE = 2e-2
_GATED = ("gate_proj", "up_proj", "down_proj")


def fuse_layers(model: PreTrainedModel) -> None:
    """Replace the forward methods of norms, adapted linear layers and gated feed-forwards, in place."""
    # Dropout would make the two results of a trial differ.
    was_training = model.training
    model.eval()
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            _replace(module, _norm_forwards(module))
    for module in model.modules():
        if is_plain_adapter(module):
            module.forward = types.MethodType(adapted_linear, module)
    # A trial of a sharded layer needs its whole weights, so layers are gathered one at a time.
    for layer in sharded_layers(model):
        with gathered(layer):
            for module in layer.modules():
                if all(is_plain_adapter(getattr(module, name, None)) for name in _GATED):
                    _replace(module, _feed_forwards())
    fuse_rotary(model)
    model.train(was_training)


def unfuse_layers(model: PreTrainedModel) -> None:
    """Restore the original forward method of every layer."""
    for module in model.modules():
        if getattr(module.__dict__.get("forward"), "__module__", None) in (__name__, adapted_linear.__module__):
            del module.forward
    unfuse_rotary(model)


def _feed_forwards() -> list[Callable[[Any, Tensor], Tensor]]:
    """Return a fused gated feed-forward for each activation whose gradient function is known."""

    def forward(activation: str) -> Callable[[Any, Tensor], Tensor]:
        def run(module: Any, x: Tensor) -> Tensor:
            if module.gate_proj.merged or (module.gate_proj.disable_adapters and torch.is_grad_enabled()):
                return type(module).forward(module, x)
            if module.gate_proj.disable_adapters:
                # The same kernels as with adapters: the reference must differ from the policy by the adapter alone.
                return module.down_proj(_gated(module.gate_proj(x), module.up_proj(x), activation))
            x = autocast(x)
            projections = (module.gate_proj, module.up_proj, module.down_proj)
            layers = tuple(adapted_layer(layer, x.dtype) for layer in projections)
            # The input of down is as wide as the feed-forward, unlike x.
            masks = tuple(dropout_mask(layer, x, layer.in_features) for layer in projections)
            adapters = [weight for layer in projections for weight in adapter_weights(layer)]
            result: Tensor = _FeedForward.apply(x.flatten(0, -2), masks, layers, activation, *adapters)
            return result.unflatten(0, x.shape[:-1])

        return run

    return [forward(name) for name in _ACTIVATIONS]


class _FeedForward(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        masks: tuple[DropoutMask | None, DropoutMask | None, DropoutMask | None],
        layers: tuple[AdaptedLayer, ...],
        activation: str,
        *_adapters: Tensor,
    ) -> Tensor:
        gate, inner_gate = forward_linear(x, masks[0], layers[0])
        up, inner_up = forward_linear(x, masks[1], layers[1])
        y, inner_down = forward_linear(_gated(gate, up, activation), masks[2], layers[2])
        save(ctx, (x, gate, up, inner_gate, inner_up, inner_down), masks)
        ctx.layers, ctx.activation = layers, activation
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (x, gate, up, inner_gate, inner_up, inner_down), masks = saved(ctx)
        # Each layer returns the gradients of its input, A and B. h is computed again for the input of down.
        hidden = _gated(gate, up, ctx.activation)
        d_hidden, *of_down = backward_linear(gradients[0], hidden, masks[2], inner_down, ctx.layers[2])
        del hidden
        d_gate, d_up = _gated_backward(d_hidden, gate, up, ctx.activation)
        d_x, *of_up = backward_linear(d_up, x, masks[1], inner_up, ctx.layers[1])
        d_x_of_gate, *of_gate = backward_linear(d_gate, x, masks[0], inner_gate, ctx.layers[0])
        # gate and up read the same input, so their gradients add up.
        return d_x.add_(d_x_of_gate), None, None, None, *of_gate, *of_up, *of_down


def _gated(gate: Tensor, up: Tensor, activation: str) -> Tensor:
    """Return h = f(g) * v."""
    kernels = kernels_for(gate)
    if kernels is not None:
        hidden: Tensor = kernels.gated(gate, up, activation)
        return hidden
    return _ACTIVATIONS[activation][0](gate).mul_(up)


def _gated_backward(d_hidden: Tensor, gate: Tensor, up: Tensor, activation: str) -> tuple[Tensor, Tensor]:
    """Return d_g = d_h * v * f'(g) and d_v = d_h * f(g). Overwrites d_h."""
    kernels = kernels_for(gate)
    if kernels is not None:
        of_gate, of_up = kernels.gated_backward(d_hidden, gate, up, activation)
        return of_gate, of_up
    activate, d_activate = _ACTIVATIONS[activation]
    d_up = activate(gate).mul_(d_hidden)
    return d_activate(d_hidden.mul_(up), gate), d_up


_ACTIVATIONS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]] = {
    "silu": (F.silu, torch.ops.aten.silu_backward),
    "gelu_tanh": (
        lambda x: F.gelu(x, approximate="tanh"),
        lambda outer, x: torch.ops.aten.gelu_backward(outer, x, approximate="tanh"),
    ),
    "gelu": (F.gelu, torch.ops.aten.gelu_backward),
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
    """Use the candidate whose result on a trial input is closest to the module's own, if it is within tolerance.

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
            own = module(trial)
        except Exception:
            # The layer may need further arguments, or an input of another shape.
            return
        if not isinstance(own, Tensor):
            return
        errors = [float((candidate(module, trial) - own).abs().max()) for candidate in candidates]
    closest = min(range(len(candidates)), key=errors.__getitem__)
    if errors[closest] <= _TOLERANCE * float(own.abs().max()):
        module.forward = types.MethodType(candidates[closest], module)
