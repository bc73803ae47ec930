"""Fused layers: norms, adapted linear layers and gated feed-forwards with explicit gradients.

Autograd would store an adapter's inputs in float32, every intermediate of a norm, both halves of a gated feed-forward
and their product. These implementations do not store them, or compute them again, and add small products to large ones
in place, which saves time and memory.

A layer is only replaced if its replacement gives the same result on a trial input.

Legend: N positions, I inputs, O outputs, r rank of an adapter, d_x for the gradient dL/dx, * elementwise, m a dropout
mask [N, I] of 0 and 1, x~ = x * m. The factor 1 / (1 - p) of dropout is part of the adapter's scale s.

Adapted linear layer:

    y = x W^T + b + s (x~ A^T) B^T              W[O, I] frozen, A[r, I] and B[O, r] trained
    u = x~ A^T                                  [N, r], `inner` below, the only intermediate that is stored
    d_u = s d_y B                               [N, r]
    d_B = s d_y^T u,   d_A = d_u^T x~
    d_x = d_y W + (d_u A) * m

Worked example with N = I = O = r = 1, no dropout: W = 2, A = 3, B = 5, s = 1, x = 1, d_y = 1. Then u = 3 and
y = 2 + 15 = 17; d_u = 5, d_B = 3, d_A = 5, d_x = 2 + 15 = 17.

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
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from merlina.training.distributed.sharding import gathered, sharded_layers

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
        if _is_plain_adapter(module):
            module.forward = types.MethodType(_adapted_linear, module)
    # A trial of a sharded layer needs its whole weights, so layers are gathered one at a time.
    for layer in sharded_layers(model):
        with gathered(layer):
            for module in layer.modules():
                if all(_is_plain_adapter(getattr(module, name, None)) for name in _GATED):
                    _replace(module, _feed_forwards())
    model.train(was_training)


def unfuse_layers(model: PreTrainedModel) -> None:
    """Restore the original forward method of every layer."""
    for module in model.modules():
        if getattr(module.__dict__.get("forward"), "__module__", None) == __name__:
            del module.forward


class _Adapted(NamedTuple):
    """A frozen linear layer and its adapter, as the functions below use them."""

    weight: Tensor  # [O, I]; 4-bit weights in the packed shape of bitsandbytes
    bias: Tensor | None  # [O]
    a: Tensor  # lora_A [r, I]
    b: Tensor  # lora_B [O, r]
    scale: float
    quantization: Any  # 4 bits: the state that bitsandbytes keeps; 8 bits: each row's largest value [O]; else None

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        """Return the weight in `dtype`, shape [O, I]."""
        if self.quantization is None:
            return self.weight.to(dtype)
        if isinstance(self.quantization, Tensor):
            # int8 weights are in units of a 127th of their row's largest value.
            return self.weight.to(dtype).mul_((self.quantization / 127).to(dtype)[:, None])
        from bitsandbytes.functional import dequantize_4bit

        return dequantize_4bit(self.weight.detach(), self.quantization).to(dtype)


def _is_plain_adapter(module: Any) -> bool:
    """Return whether a module is one ordinary adapter on a frozen linear layer of dense, 4-bit or 8-bit weights.

    Adapters also exist on parameters of experts, on embeddings and on convolutions; those stay as they are.
    """
    if not isinstance(module, LoraLayer) or list(module.lora_A) != ["default"]:
        return False
    base = module.base_layer
    if type(base) is not nn.Linear and type(base).__name__ not in ("Linear4bit", "Linear8bitLt"):
        return False
    is_plain = "default" not in module.lora_variant and module.lora_B["default"].bias is None
    return is_plain and not base.weight.requires_grad


def _adapted(module: Any) -> _Adapted:
    base = module.base_layer
    return _Adapted(
        base.weight,
        base.bias,
        module.lora_A["default"].weight,
        module.lora_B["default"].weight,
        module.scaling["default"] / (1 - _dropout_rate(module)),
        getattr(base.weight, "quant_state", None) if type(base).__name__ != "Linear8bitLt" else _row_maxima(base),
    )


def _row_maxima(base: Any) -> Tensor:
    # bitsandbytes moves them from the weight to the layer's state in the first forward pass.
    largest: Tensor = base.weight.SCB if base.state.SCB is None else base.state.SCB
    return largest


def _adapted_linear(module: Any, x: Tensor) -> Tensor:
    # A merged adapter is part of the weight, and adding it again would be wrong.
    if module.merged:
        return type(module).forward(module, x)
    layer, x = _adapted(module), _autocast(x)
    if module.disable_adapters:
        # bitsandbytes' own product rounds differently. The reference must differ from the policy by the adapter alone.
        return _frozen_linear(x.flatten(0, -2), layer).unflatten(0, x.shape[:-1])
    result: Tensor = _AdaptedLinear.apply(x.flatten(0, -2), _dropout_mask(module, x), layer, layer.a, layer.b)
    return result.unflatten(0, x.shape[:-1])


class _AdaptedLinear(torch.autograd.Function):
    """A linear layer with an adapter (LoRA, arXiv 2106.09685, equation 3)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, mask: Tensor | None, layer: _Adapted, *_adapter: Tensor) -> Tensor:
        # Neither x~ nor the dequantized weight is stored: both are cheap to compute again.
        y, inner = _forward_linear(x, mask, layer)
        ctx.save_for_backward(x, mask, inner)
        ctx.layer = layer
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        x, mask, inner = ctx.saved_tensors
        d_x, d_a, d_b = _backward_linear(gradients[0], x, mask, inner, ctx.layer)
        return d_x, None, None, d_a, d_b


def _frozen_linear(x: Tensor, layer: _Adapted) -> Tensor:
    """Return x W^T + b, shape [N, O], for x[N, I]."""
    return F.linear(x, layer.dequantized(x.dtype), None if layer.bias is None else layer.bias.to(x.dtype))


def _forward_linear(x: Tensor, mask: Tensor | None, layer: _Adapted) -> tuple[Tensor, Tensor]:
    """Return y[N, O] and u[N, r] for x[N, I]."""
    y = _frozen_linear(x, layer)  # [N, O]
    # The scale of the adapter includes 1 / (1 - p), so the mask itself is 0 or 1 and takes a byte per element.
    inner = (x if mask is None else x * mask) @ layer.a.to(x.dtype).t()
    # y += s u B^T in place, without a second tensor [N, O]
    y.addmm_(inner, layer.b.to(x.dtype).t(), alpha=layer.scale)
    return y, inner


def _backward_linear(
    d_y: Tensor, x: Tensor, mask: Tensor | None, inner: Tensor, layer: _Adapted
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x, A and B for d_y[N, O]."""
    # d_u = s d_y B
    d_inner = (d_y @ layer.b.to(x.dtype)).mul_(layer.scale)
    # d_B = s d_y^T u, as (u^T d_y)^T; the gradients of trained weights are float32.
    d_b = (inner.t() @ d_y).float().mul_(layer.scale).t()
    # d_x = d_y W + (d_u A) * m
    d_x = d_y @ layer.dequantized(x.dtype)
    if mask is None:
        d_x.addmm_(d_inner, layer.a.to(x.dtype))
        # d_A = d_u^T x~
        d_a = (d_inner.t() @ x).float()
    else:
        d_x.addcmul_(d_inner @ layer.a.to(x.dtype), mask)
        d_a = (d_inner.t() @ (x * mask)).float()
    return d_x, d_a.to(layer.a.dtype), d_b.to(layer.b.dtype)


def _feed_forwards() -> list[Callable[[Any, Tensor], Tensor]]:
    """Return a fused gated feed-forward for each activation whose gradient function is known."""

    def forward(activation: str) -> Callable[[Any, Tensor], Tensor]:
        def run(module: Any, x: Tensor) -> Tensor:
            if module.gate_proj.disable_adapters or module.gate_proj.merged:
                return type(module).forward(module, x)
            layers = tuple(_adapted(layer) for layer in (module.gate_proj, module.up_proj, module.down_proj))
            x = _autocast(x)
            masks = (_dropout_mask(module.gate_proj, x), _dropout_mask(module.up_proj, x))
            # The input of down is as wide as the feed-forward, unlike x.
            down_mask = _dropout_mask(module.down_proj, x, layers[2].a.shape[1])
            adapters = [weight for layer in layers for weight in (layer.a, layer.b)]
            result: Tensor = _FeedForward.apply(x.flatten(0, -2), *masks, down_mask, layers, activation, *adapters)
            return result.unflatten(0, x.shape[:-1])

        return run

    return [forward(name) for name in _ACTIVATIONS]


class _FeedForward(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        gate_mask: Tensor | None,
        up_mask: Tensor | None,
        down_mask: Tensor | None,
        layers: tuple[_Adapted, ...],
        activation: str,
        *_adapters: Tensor,
    ) -> Tensor:
        gate, inner_gate = _forward_linear(x, gate_mask, layers[0])
        up, inner_up = _forward_linear(x, up_mask, layers[1])
        # h = f(g) * v, into the memory of f(g)
        hidden = _ACTIVATIONS[activation][0](gate).mul_(up)
        y, inner_down = _forward_linear(hidden, down_mask, layers[2])
        ctx.save_for_backward(x, gate_mask, up_mask, down_mask, gate, up, inner_gate, inner_up, inner_down)
        ctx.layers, ctx.activation = layers, activation
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        x, gate_mask, up_mask, down_mask, gate, up, inner_gate, inner_up, inner_down = ctx.saved_tensors
        activate, d_activate = _ACTIVATIONS[ctx.activation]
        active = activate(gate)  # f(g), computed again
        # Each layer returns the gradients of its input, A and B. h = f(g) * v is computed again for the input of down.
        d_hidden, *of_down = _backward_linear(gradients[0], active * up, down_mask, inner_down, ctx.layers[2])
        # d_v = d_h * f(g), into the memory of f(g)
        d_up, *of_up = _backward_linear(active.mul_(d_hidden), x, up_mask, inner_up, ctx.layers[1])
        # d_g = d_h * v * f'(g), into the memory of d_h
        d_gate, *of_gate = _backward_linear(
            d_activate(d_hidden.mul_(up), gate), x, gate_mask, inner_gate, ctx.layers[0]
        )
        # gate and up read the same input, so their gradients add up.
        return d_up.add_(d_gate), None, None, None, None, None, *of_gate, *of_up, *of_down


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
        full = x.to(torch.float32, copy=True)
        inverse = full.square().mean(-1, keepdim=True).add_(eps).rsqrt_()  # c [N, 1]
        # x is stored in its own dtype and c as one number per position; autograd would store float32 copies of x.
        ctx.save_for_backward(x, weight, inverse)
        ctx.offset = offset
        return full.mul_(inverse).mul_(weight.float() + offset).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        x, weight, inverse = ctx.saved_tensors
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


def _autocast(x: Tensor) -> Tensor:
    """Cast to the dtype of autocast if it is enabled, since custom functions are not autocast."""
    kind = x.device.type
    return x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x


def _dropout_mask(module: Any, x: Tensor, width: int | None = None) -> Tensor | None:
    """Return a dropout mask, 1 for elements that are kept, shape [N, I]; None if nothing is dropped."""
    rate = _dropout_rate(module)
    if rate == 0:
        return None
    shape = (x.shape[:-1].numel(), width or x.shape[-1])
    # Drawing 64 random bits takes as long as one float, so each draw supplies four elements of 16 bits. An element is
    # kept if its signed 16-bit number is at least rate * 2^16 - 2^15: for a rate of 0.25, three quarters of them are.
    draws = torch.empty(-(-shape[0] * shape[1] // 4), dtype=torch.int64, device=x.device).random_(-(2**63), None)
    numbers = draws.view(torch.int16)[: shape[0] * shape[1]].view(shape)
    return (numbers >= round(rate * 2**16) - 2**15).view(torch.uint8)


def _dropout_rate(module: Any) -> float:
    """Return the probability with which elements of an adapter's input are dropped: 0 in evaluation mode."""
    dropout = module.lora_dropout["default"]
    return 0.0 if isinstance(dropout, nn.Identity) or not module.training else float(dropout.p)
