"""Dropout masks of adapters' inputs: stored bits on a CPU, a seed on a GPU, from which kernels draw them again."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from merlina.training.engine.kernel_choice import kernels_for


class DropoutMask(NamedTuple):
    """The elements of an adapter's input that are not dropped: their `bits`, or a seed from which kernels draw them."""

    rate: float
    seed: int
    bits: Tensor | None  # [N, I] uint8: 1 for elements that are kept

    def apply(self, x: Tensor) -> Tensor:
        """Return x * m, in the shape of x[N, I]: x with the dropped elements replaced by 0."""
        if self.bits is not None:
            return x * self.bits
        dropped: Tensor = kernels_for(x).dropped(x.contiguous(), self.seed, self.rate)  # type: ignore[union-attr]
        return dropped

    def add(self, total: Tensor, x: Tensor) -> None:
        """Add x * m, for x[N, I], to total[N, I] in place."""
        if self.bits is not None:
            total.addcmul_(x, self.bits)
        else:
            kernels_for(x).add_dropped(total, x, self.seed, self.rate)  # type: ignore[union-attr]


def draw_mask(rate: float, x: Tensor, width: int) -> DropoutMask | None:
    """Return a dropout mask [N, width] for the positions of x[..., I]; None if nothing is dropped."""
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
