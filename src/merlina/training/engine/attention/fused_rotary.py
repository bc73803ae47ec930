"""Rotary embeddings of queries and keys on a GPU in one kernel launch.

transformers' attention layers call the function `apply_rotary_pos_emb` of the Python module that defines them. It is
replaced there, for all models of that module in this process, if the kernel gives the same result on a trial input;
families with other layouts keep the original function.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from merlina.training.engine.kernel_choice import kernels_for

_NAME = "apply_rotary_pos_emb"
_PARAMETERS = ["q", "k", "cos", "sin", "unsqueeze_dim"]
_TOLERANCE = 1e-4


def fuse_rotary(model: nn.Module) -> None:
    """Replace the rotary embeddings of a model's layers, in the modules that define these layers."""
    device = next(model.parameters()).device
    if kernels_for(torch.empty(0, device=device)) is None:
        return
    for module in _modules(model):
        function = getattr(module, _NAME, None)
        if function is not None and not hasattr(function, "original") and _is_reproduced(function, device):
            setattr(module, _NAME, _fused(function))


def unfuse_rotary(model: nn.Module) -> None:
    """Restore the rotary embeddings that `fuse_rotary` replaced."""
    for module in _modules(model):
        original = getattr(getattr(module, _NAME, None), "original", None)
        if original is not None:
            setattr(module, _NAME, original)


def _modules(model: nn.Module) -> Iterator[ModuleType]:
    """Yield the Python modules that define the classes of the model's layers."""
    for name in {type(layer).__module__ for layer in model.modules()}:
        yield sys.modules[name]


def _fused(original: Callable[..., Any]) -> Callable[..., Any]:
    def apply_rotary_pos_emb(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> Any:
        # A pack is one sequence; batches of several use the original function.
        if unsqueeze_dim == 1 and len(q) == len(cos) == 1 and q.shape[-1] == cos.shape[-1] and kernels_for(q):
            return _Rotate.apply(q, k, cos, sin)
        return original(q, k, cos, sin, unsqueeze_dim)

    apply_rotary_pos_emb.original = original  # type: ignore[attr-defined]
    return apply_rotary_pos_emb


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, queries: Tensor, keys: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = cos.contiguous(), sin.contiguous()
        ctx.save_for_backward(cos, sin)
        return _rotate(queries, keys, cos, sin, transposed=False)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return *_rotate(*gradients, *ctx.saved_tensors, transposed=True), None, None


def _rotate(queries: Tensor, keys: Tensor, cos: Tensor, sin: Tensor, *, transposed: bool) -> tuple[Tensor, Tensor]:
    queries, keys = (states if states.stride(-1) == 1 else states.contiguous() for states in (queries, keys))
    results: tuple[Tensor, Tensor] = kernels_for(queries).rotate(  # type: ignore[union-attr]
        queries, keys, cos, sin, transposed=transposed
    )
    return results


def _is_reproduced(original: Callable[..., Any], device: torch.device) -> bool:
    """Return whether the kernel gives the result of a model's original function on trial inputs."""
    if list(inspect.signature(original).parameters)[:5] != _PARAMETERS:
        return False
    # Two heads of size 8 at 4 positions; different angles for each element, so that other layouts differ.
    states = torch.linspace(-1, 1, 64, device=device).view(1, 2, 4, 8)
    angles = torch.linspace(0, 6, 16, device=device).view(1, 4, 4)
    angles = torch.cat((angles, angles), -1)
    try:
        expected = original(states, states.flip(1), angles.cos(), angles.sin())
        found = _fused(original)(states, states.flip(1), angles.cos(), angles.sin())
    except Exception:
        # A function for inputs of another form.
        return False
    return all(torch.allclose(*pair, atol=_TOLERANCE) for pair in zip(found, expected, strict=True))
