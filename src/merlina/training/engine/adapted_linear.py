"""Adapted linear layers with explicit gradients.

Autograd would store an adapter's inputs in float32 and cast its weights in each layer of each pass. Here inputs are
stored in the dtype of the pass, weights are cast once for all passes of an optimizer step (`AdapterCasts`), and small
products are added to large ones in place.

Legend: N positions, I inputs, O outputs, r rank of an adapter, d_x for the gradient dL/dx, * elementwise, m a dropout
mask [N, I] of 0 and 1, x~ = x * m. The factor 1 / (1 - p) of dropout is part of the adapter's scale s.

Adapted linear layer:

    y = x W^T + b + s (x~ A^T) B^T              W[O, I] frozen, A[r, I] and B[O, r] trained
    u = x~ A^T                                  [N, r], `inner` below, stored beside x and, on a CPU, the mask
    d_u = s d_y B                               [N, r]
    d_B = s d_y^T u,   d_A = d_u^T x~
    d_x = d_y W + (d_u A) * m

Worked example with N = I = O = r = 1, no dropout: W = 2, A = 3, B = 5, s = 1, x = 1, d_y = 1. Then u = 3 and
y = 2 + 15 = 17; d_u = 5, d_B = 3, d_A = 5, d_x = 2 + 15 = 17.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from merlina.training.engine.kernel_choice import kernels_for

# The attribute of an adapter's module that holds its cast weights.
_HELD = "_held_cast"


class AdaptedLayer(NamedTuple):
    """A frozen linear layer as it is stored, and its adapter in the dtype of the pass."""

    weight: Tensor  # [O, I]; 4-bit weights in the packed shape of bitsandbytes
    bias: Tensor | None  # [O]
    a: Tensor  # lora_A [r, I]
    b: Tensor  # s lora_B [O, r]
    scale: float
    quantization: (
        Any  # 4 bits: the state that bitsandbytes keeps; 8 bits: each row's largest absolute value [O]; else None
    )

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        """Return the weight in `dtype`, shape [O, I]."""
        if self.quantization is None:
            return self.weight.to(dtype)
        if isinstance(self.quantization, Tensor):
            # int8 weights are in units of a 127th of their row's largest value.
            return self.weight.to(dtype).mul_((self.quantization / 127).to(dtype)[:, None])
        from bitsandbytes.functional import dequantize_4bit

        return dequantize_4bit(self.weight.detach(), self.quantization).to(dtype)


class _Cast(NamedTuple):
    """An adapter's weights in the dtype of passes: A [r, I] and s B [O, r]."""

    a: Tensor
    b: Tensor
    scale: float


class AdapterCasts:
    """Casts the adapters of a model once for several passes, instead of in each layer of each pass."""

    def __init__(self, model: nn.Module) -> None:
        self._modules: list[Any] = [module for module in model.modules() if is_plain_adapter(module)]

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Use one copy of each adapter for all passes inside this context, in which its weights must not change."""
        if not self._modules:
            yield
            return
        a = [module.lora_A["default"].weight.detach() for module in self._modules]
        b = [module.lora_B["default"].weight.detach() for module in self._modules]
        scales = [_scale(module) for module in self._modules]
        kind = a[0].device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else a[0].dtype
        a = a if a[0].dtype == dtype else _cast_all(a, dtype)
        # Scaled in the dtype of the weights, usually float32, and rounded once.
        b = _cast_all(list(torch._foreach_mul(b, scales)), dtype)
        for module, *cast in zip(self._modules, a, b, scales, strict=True):
            module.__dict__[_HELD] = _Cast(*cast)
        try:
            yield
        finally:
            for module in self._modules:
                del module.__dict__[_HELD]


def _cast_all(tensors: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    copies = [torch.empty_like(tensor, dtype=dtype) for tensor in tensors]
    # One kernel for many tensors.
    torch._foreach_copy_(copies, tensors)
    return copies


class DropoutMask(NamedTuple):
    """The elements of an adapter's input that are not dropped: their `bits`, or a seed from which kernels draw them."""

    rate: float
    seed: int
    bits: Tensor | None  # [N, I] uint8: 1 for elements that are kept

    def apply(self, x: Tensor) -> Tensor:
        """Return x * m."""
        if self.bits is not None:
            return x * self.bits
        dropped: Tensor = kernels_for(x).dropped(x.contiguous(), self.seed, self.rate)  # type: ignore[union-attr]
        return dropped

    def add(self, total: Tensor, x: Tensor) -> None:
        """Add x * m to `total` in place."""
        if self.bits is not None:
            total.addcmul_(x, self.bits)
        else:
            kernels_for(x).add_dropped(total, x, self.seed, self.rate)  # type: ignore[union-attr]


def is_plain_adapter(module: Any) -> bool:
    """Return whether a module is one ordinary adapter on a frozen linear layer of dense, 4-bit or 8-bit weights.

    Adapters also exist on parameters of experts, on embeddings and on convolutions; those stay as they are.
    """
    # Not imported with this module, which spare processes import: peft imports bitsandbytes, which opens every GPU.
    from peft.tuners.lora import LoraLayer

    if not isinstance(module, LoraLayer) or list(module.lora_A) != ["default"]:
        return False
    base = module.base_layer
    if type(base) is not nn.Linear and type(base).__name__ not in ("Linear4bit", "Linear8bitLt"):
        return False
    is_plain = "default" not in module.lora_variant and module.lora_B["default"].bias is None
    return is_plain and not base.weight.requires_grad


def adapted_layer(module: Any, dtype: torch.dtype) -> AdaptedLayer:
    base, scale = module.base_layer, _scale(module)
    cast: _Cast | None = module.__dict__.get(_HELD)
    if cast is None or cast.scale != scale or cast.a.dtype != dtype:
        a, b = adapter_weights(module)
        cast = _Cast(a.detach().to(dtype), (b.detach() * scale).to(dtype), scale)
    quantization = (
        getattr(base.weight, "quant_state", None) if type(base).__name__ != "Linear8bitLt" else _row_maxima(base)
    )
    return AdaptedLayer(base.weight, base.bias, *cast, quantization)


def adapter_weights(module: Any) -> tuple[Tensor, Tensor]:
    """Return the trained weights A [r, I] and B [O, r]."""
    return module.lora_A["default"].weight, module.lora_B["default"].weight


def _scale(module: Any) -> float:
    return float(module.scaling["default"]) / (1 - _dropout_rate(module))


def _row_maxima(base: Any) -> Tensor:
    # bitsandbytes moves them from the weight to the layer's state in the first forward pass.
    largest: Tensor = base.weight.SCB if base.state.SCB is None else base.state.SCB
    return largest


def adapted_linear(module: Any, x: Tensor) -> Tensor:
    # A merged adapter is part of the weight, and adding it again would be wrong.
    if module.merged:
        return type(module).forward(module, x)
    x = autocast(x)
    layer = adapted_layer(module, x.dtype)
    if module.disable_adapters:
        # bitsandbytes' own product rounds differently. The reference must differ from the policy by the adapter alone.
        return _frozen_linear(x.flatten(0, -2), layer).unflatten(0, x.shape[:-1])
    result: Tensor = _AdaptedLinear.apply(
        x.flatten(0, -2), dropout_mask(module, x, x.shape[-1]), layer, *adapter_weights(module)
    )
    return result.unflatten(0, x.shape[:-1])


class _AdaptedLinear(torch.autograd.Function):
    """A linear layer with an adapter (LoRA, arXiv 2106.09685, equation 3)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, mask: DropoutMask | None, layer: AdaptedLayer, *_adapter: Tensor) -> Tensor:
        # Neither x~ nor the dequantized weight is stored: both are cheap to compute again.
        y, inner = forward_linear(x, mask, layer)
        save(ctx, (x, inner), (mask,))
        ctx.layer = layer
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (x, inner), (mask,) = saved(ctx)
        d_x, d_a, d_b = backward_linear(gradients[0], x, mask, inner, ctx.layer)
        return d_x, None, None, d_a, d_b


def save(ctx: Any, tensors: tuple[Tensor, ...], masks: tuple[DropoutMask | None, ...]) -> None:
    """Save tensors and masks in a way that lets gradient checkpointing free them."""
    ctx.save_for_backward(*tensors, *(None if mask is None else mask.bits for mask in masks))
    ctx.masks = [None if mask is None else mask._replace(bits=None) for mask in masks]


def saved(ctx: Any) -> tuple[tuple[Tensor, ...], list[DropoutMask | None]]:
    """Return what `save` stored."""
    # Gradient checkpointing computes them again when they are read, and only once.
    everything = ctx.saved_tensors
    count = len(everything) - len(ctx.masks)
    masks = zip(ctx.masks, everything[count:], strict=True)
    return everything[:count], [None if mask is None else mask._replace(bits=bits) for mask, bits in masks]


def _frozen_linear(x: Tensor, layer: AdaptedLayer) -> Tensor:
    """Return x W^T + b, shape [N, O], for x[N, I]."""
    return F.linear(x, layer.dequantized(x.dtype), None if layer.bias is None else layer.bias.to(x.dtype))


def forward_linear(x: Tensor, mask: DropoutMask | None, layer: AdaptedLayer) -> tuple[Tensor, Tensor]:
    """Return y[N, O] and u[N, r] for x[N, I]."""
    y = _frozen_linear(x, layer)  # [N, O]
    # The scale of the adapter includes 1 / (1 - p), so the mask itself is 0 or 1 and takes a byte per element.
    inner = (x if mask is None else mask.apply(x)) @ layer.a.t()
    # y += u (s B)^T in place, without a second tensor [N, O]
    y.addmm_(inner, layer.b.t())
    return y, inner


def backward_linear(
    d_y: Tensor, x: Tensor, mask: DropoutMask | None, inner: Tensor, layer: AdaptedLayer
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x, A and B for d_y[N, O]."""
    d_inner = d_y @ layer.b  # d_u = s d_y B
    d_b = _outer_sum(d_y, inner)  # d_B = s d_y^T u
    if layer.scale != 1:
        d_b.mul_(layer.scale)
    # d_x = d_y W + (d_u A) * m
    d_x = d_y @ layer.dequantized(x.dtype)
    if mask is None:
        d_x.addmm_(d_inner, layer.a)
    else:
        mask.add(d_x, d_inner @ layer.a)
    # d_A = d_u^T x~
    d_a = _outer_sum(d_inner, x if mask is None else mask.apply(x))
    return d_x, d_a, d_b


def _outer_sum(left: Tensor, right: Tensor) -> Tensor:
    """Return left^T right, shape [p, q], for left[N, p] and right[N, q]; float32, as gradients of trained weights."""
    if left.is_cuda and left.dtype != torch.float32:
        return torch.mm(left.t(), right, out_dtype=torch.float32)
    # On a CPU, products with few rows are faster than products with few columns.
    if left.shape[1] > right.shape[1]:
        return (right.t() @ left).float().t()
    return (left.t() @ right).float()


def autocast(x: Tensor) -> Tensor:
    """Cast to the dtype of autocast if it is enabled, since custom functions are not autocast."""
    kind = x.device.type
    return x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x


def dropout_mask(module: Any, x: Tensor, width: int) -> DropoutMask | None:
    """Return a dropout mask for an adapter's input [N, width]; None if nothing is dropped."""
    rate = _dropout_rate(module)
    if rate == 0:
        return None
    if kernels_for(x) is not None:
        # Drawn on the CPU, so that nothing waits for the GPU.
        return DropoutMask(rate, int(torch.randint(2**31 - 1, ())), None)
    shape = (x.shape[:-1].numel(), width)
    # Drawing 64 random bits takes as long as one float, so each draw supplies four elements of 16 bits. An element is
    # kept if its signed 16-bit number is at least rate * 2^16 - 2^15: for a rate of 0.25, three quarters of them are.
    draws = torch.empty(-(-shape[0] * shape[1] // 4), dtype=torch.int64, device=x.device).random_(-(2**63), None)
    numbers = draws.view(torch.int16)[: shape[0] * shape[1]].view(shape)
    return DropoutMask(rate, 0, (numbers >= round(rate * 2**16) - 2**15).view(torch.uint8))


def _dropout_rate(module: Any) -> float:
    """Return the probability with which elements of an adapter's input are dropped: 0 in evaluation mode."""
    dropout = module.lora_dropout["default"]
    return 0.0 if isinstance(dropout, nn.Identity) or not module.training else float(dropout.p)
