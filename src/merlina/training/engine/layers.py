"""Layers of the model with their gradients written out, where that saves time and memory over autograd's own way.

What autograd would keep (inputs in float32 for an adapter, each step of a norm, both halves of a gated feed-forward and
their product) is not kept, or computed again; small products go into large ones in place.

A layer is only replaced where its replacement gives the same on a trial input; any other is left as it is.

Legend: N positions, I inputs, O outputs, r rank of an adapter.
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
# Of the largest number that a layer gives on its trial.
_CLOSE_ENOUGH = 2e-2
_GATED = ("gate_proj", "up_proj", "down_proj")


def fuse_layers(model: PreTrainedModel) -> None:
    """Replaces the forwards of norms, adapted linear layers and gated feed-forwards, in place."""
    was_training = model.training
    model.eval()
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            _replace(module, _norm_forwards(module))
    for module in model.modules():
        if _is_plain_adapter(module):
            module.forward = types.MethodType(_adapted_linear, module)
    for layer in sharded_layers(model):
        with gathered(layer):
            for module in layer.modules():
                if all(_is_plain_adapter(getattr(module, name, None)) for name in _GATED):
                    _replace(module, _feed_forwards())
    model.train(was_training)


def unfuse_layers(model: PreTrainedModel) -> None:
    """Gives every layer its own forward back."""
    for module in model.modules():
        if getattr(module.__dict__.get("forward"), "__module__", None) == __name__:
            del module.forward


class _Adapted(NamedTuple):
    """A frozen linear layer and its adapter, as the functions below take them."""

    weight: Tensor  # [O, I], or how bitsandbytes packs it
    bias: Tensor | None  # [O]
    down: Tensor  # lora_A [r, I]
    up: Tensor  # lora_B [O, r]
    scale: float
    packing: Any  # of 4-bit weights bitsandbytes' quantization state, of 8-bit ones each row's largest value, or None

    def unpacked(self, dtype: torch.dtype) -> Tensor:
        """[O, I]"""
        if self.packing is None:
            return self.weight.to(dtype)
        if isinstance(self.packing, Tensor):
            return self.weight.to(dtype).mul_((self.packing / 127).to(dtype)[:, None])
        from bitsandbytes.functional import dequantize_4bit

        return dequantize_4bit(self.weight.detach(), self.packing).to(dtype)


def _is_plain_adapter(module: Any) -> bool:
    """Whether it is one adapter of the usual kind on a frozen linear layer of plain, 4-bit or 8-bit weights.

    Adapters stand on other things too: on single parameters of experts, on embeddings, on convolutions.
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
        module.scaling["default"] / (1 - _dropout(module)),
        getattr(base.weight, "quant_state", None) if type(base).__name__ != "Linear8bitLt" else _largest_by_row(base),
    )


def _largest_by_row(base: Any) -> Tensor:
    largest: Tensor = base.weight.SCB if base.state.SCB is None else base.state.SCB
    return largest


def _adapted_linear(module: Any, x: Tensor) -> Tensor:
    if module.merged:
        return type(module).forward(module, x)
    layer, x = _adapted(module), _cast(x)
    if module.disable_adapters:
        # Not bitsandbytes' own product, which rounds otherwise: only the adapter may tell this from the model with it.
        return _frozen_linear(x.flatten(0, -2), layer).unflatten(0, x.shape[:-1])
    result: Tensor = _AdaptedLinear.apply(x.flatten(0, -2), _dropout_mask(module, x), layer, layer.down, layer.up)
    return result.unflatten(0, x.shape[:-1])


class _AdaptedLinear(torch.autograd.Function):
    """y = x W^T + b + scale * dropped(x) A^T B^T (arXiv 2106.09685, equation 3)"""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kept: Tensor | None, layer: _Adapted, *_adapter: Tensor) -> Tensor:
        y, inner = _forward_linear(x, kept, layer)
        ctx.save_for_backward(x, kept, inner)
        ctx.layer = layer
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        x, kept, inner = ctx.saved_tensors
        d_x, d_down, d_up = _backward_linear(gradients[0], x, kept, inner, ctx.layer)
        return d_x, None, None, d_down, d_up


def _frozen_linear(x: Tensor, layer: _Adapted) -> Tensor:
    """x[N, I] -> x W^T + b [N, O]"""
    return F.linear(x, layer.unpacked(x.dtype), None if layer.bias is None else layer.bias.to(x.dtype))


def _forward_linear(x: Tensor, kept: Tensor | None, layer: _Adapted) -> tuple[Tensor, Tensor]:
    """x[N, I] -> y[N, O] and dropped(x) A^T [N, r]"""
    y = _frozen_linear(x, layer)
    inner = (x if kept is None else x * kept) @ layer.down.to(x.dtype).t()
    y.addmm_(inner, layer.up.to(x.dtype).t(), alpha=layer.scale)
    return y, inner


def _backward_linear(
    d_y: Tensor, x: Tensor, kept: Tensor | None, inner: Tensor, layer: _Adapted
) -> tuple[Tensor, Tensor, Tensor]:
    """d_y[N, O] -> gradients of x, A and B"""
    d_inner = (d_y @ layer.up.to(x.dtype)).mul_(layer.scale)
    d_up = (inner.t() @ d_y).float().mul_(layer.scale).t()
    d_x = d_y @ layer.unpacked(x.dtype)
    if kept is None:
        d_x.addmm_(d_inner, layer.down.to(x.dtype))
        d_down = (d_inner.t() @ x).float()
    else:
        d_x.addcmul_(d_inner @ layer.down.to(x.dtype), kept)
        d_down = (d_inner.t() @ (x * kept)).float()
    return d_x, d_down.to(layer.down.dtype), d_up.to(layer.up.dtype)


def _feed_forwards() -> list[Callable[[Any, Tensor], Tensor]]:
    """down(activation(gate(x)) * up(x)) as one function, for activations whose gradient is at hand."""

    def forward(activation: str) -> Callable[[Any, Tensor], Tensor]:
        def run(module: Any, x: Tensor) -> Tensor:
            if module.gate_proj.disable_adapters or module.gate_proj.merged:
                return type(module).forward(module, x)
            layers = tuple(_adapted(layer) for layer in (module.gate_proj, module.up_proj, module.down_proj))
            x = _cast(x)
            kept = (_dropout_mask(module.gate_proj, x), _dropout_mask(module.up_proj, x))
            kept_inner = _dropout_mask(module.down_proj, x, layers[2].down.shape[1])
            adapters = [weight for layer in layers for weight in (layer.down, layer.up)]
            result: Tensor = _FeedForward.apply(x.flatten(0, -2), *kept, kept_inner, layers, activation, *adapters)
            return result.unflatten(0, x.shape[:-1])

        return run

    return [forward(name) for name in _ACTIVATIONS]


class _FeedForward(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        kept_gate: Tensor | None,
        kept_up: Tensor | None,
        kept_down: Tensor | None,
        layers: tuple[_Adapted, ...],
        activation: str,
        *_adapters: Tensor,
    ) -> Tensor:
        gate, inner_gate = _forward_linear(x, kept_gate, layers[0])
        up, inner_up = _forward_linear(x, kept_up, layers[1])
        hidden = _ACTIVATIONS[activation][0](gate).mul_(up)
        y, inner_down = _forward_linear(hidden, kept_down, layers[2])
        ctx.save_for_backward(x, kept_gate, kept_up, kept_down, gate, up, inner_gate, inner_up, inner_down)
        ctx.layers, ctx.activation = layers, activation
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        x, kept_gate, kept_up, kept_down, gate, up, inner_gate, inner_up, inner_down = ctx.saved_tensors
        activate, d_activate = _ACTIVATIONS[ctx.activation]
        active = activate(gate)
        d_hidden, *of_down = _backward_linear(gradients[0], active * up, kept_down, inner_down, ctx.layers[2])
        d_up, *of_up = _backward_linear(active.mul_(d_hidden), x, kept_up, inner_up, ctx.layers[1])
        d_gate, *of_gate = _backward_linear(
            d_activate(d_hidden.mul_(up), gate), x, kept_gate, inner_gate, ctx.layers[0]
        )
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
    """x / sqrt(mean(x^2) + eps) times the weight, or times 1 + weight as Gemma has it."""
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
        inverse = full.square().mean(-1, keepdim=True).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, inverse)
        ctx.offset = offset
        return full.mul_(inverse).mul_(weight.float() + offset).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        x, weight, inverse = ctx.saved_tensors
        full = x.float()
        d_x = gradients[0].to(torch.float32, copy=True).mul_(weight.float() + ctx.offset)
        along = (full * d_x).mean(-1, keepdim=True).mul_(inverse**3).neg_()
        d_x.mul_(inverse).addcmul_(full, along)
        return d_x.to(x.dtype), None, None, None


def _replace(module: Any, candidates: list[Callable[[Any, Tensor], Tensor]]) -> None:
    """Takes the candidate closest to what the module itself gives on a trial input, where one is close enough."""
    if not candidates:
        return
    weight = getattr(module, "weight", None)
    width = module.gate_proj.in_features if weight is None else weight.shape[0]
    device = next(module.parameters()).device
    dtype = weight.dtype if weight is not None else module.gate_proj.lora_A["default"].weight.dtype
    trial = torch.linspace(-2, 2, _TRIAL_POSITIONS * width, device=device).view(_TRIAL_POSITIONS, width).to(dtype)
    with torch.no_grad():
        try:
            own = module(trial)
        except Exception:
            # Such as a layer that needs more than its input, or an input of another shape.
            return
        if not isinstance(own, Tensor):
            return
        apart = [float((candidate(module, trial) - own).abs().max()) for candidate in candidates]
    closest = min(range(len(candidates)), key=apart.__getitem__)
    if apart[closest] <= _CLOSE_ENOUGH * float(own.abs().max()):
        module.forward = types.MethodType(candidates[closest], module)


def _cast(x: Tensor) -> Tensor:
    """To what autocast computes in, where it is on."""
    kind = x.device.type
    return x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x


def _dropout_mask(module: Any, x: Tensor, width: int | None = None) -> Tensor | None:
    """Dropout as 1 where an element stays and 0 where not, [N, I]; None where nothing is dropped."""
    share = _dropout(module)
    if share == 0:
        return None
    shape = (x.shape[:-1].numel(), width or x.shape[-1])
    # torch draws 64 random bits as fast as one number: four elements are made of each draw.
    draws = torch.empty(-(-shape[0] * shape[1] // 4), dtype=torch.int64, device=x.device).random_(-(2**63), None)
    numbers = draws.view(torch.int16)[: shape[0] * shape[1]].view(shape)
    return (numbers >= round(share * 2**16) - 2**15).view(torch.uint8)


def _dropout(module: Any) -> float:
    """The share of an adapter's input that is dropped now."""
    dropout = module.lora_dropout["default"]
    return 0.0 if isinstance(dropout, nn.Identity) or not module.training else float(dropout.p)
