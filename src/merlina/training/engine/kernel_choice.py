"""The choice of Triton kernels: a GPU uses them if each gives the result of torch's operations on a small input."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import cache, partial
from types import ModuleType

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

# Triton decides on import whether it interprets kernels, which then also run on a CPU.
_INTERPRETS = os.environ.get("TRITON_INTERPRET") == "1"
# The largest accepted error of a kernel in float32, relative to values of about 1.
_TOLERANCE = 1e-4


def kernels_for(tensor: Tensor) -> ModuleType | None:
    """Return `gpu_kernels` if it works on the tensor's device, else None: torch's own operations are used."""
    # Queried in every layer, so the usual answer on a CPU comes first.
    if not (tensor.is_cuda or _INTERPRETS):
        return None
    return _tried(tensor.device)[0]


def kernel_obstacle(device: torch.device) -> str | None:
    """Return why a GPU does not use the kernels, as the rest of a sentence about them.

    None if the kernels are used or the device is not a GPU.
    """
    return _tried(device)[1] if device.type == "cuda" else None


@cache
def _tried(device: torch.device) -> tuple[ModuleType | None, str | None]:
    """Try the kernels on a device. Returns their module if they work, else the reason why they do not."""
    try:
        from merlina.training.engine import gpu_kernels
    except ImportError as error:
        return None, f"need the package triton ({error})"
    try:
        name = _wrong_kernel(gpu_kernels, device)
    except Exception as error:
        # Triton compiles on first use and raises errors of many kinds, for instance without a C compiler.
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return None, f"cannot be compiled here: {lines[0]}"
    return (None, f"compute wrong results on this GPU ({name})") if name else (gpu_kernels, None)


def _wrong_kernel(kernels: ModuleType, device: torch.device) -> str | None:
    """Run each kernel, forward and backward; return the first that gives another result than torch's operations."""
    x = torch.linspace(-2, 2, 4 * 96, device=device).view(4, 96)
    trials = (
        ("rms_norm", lambda: _norms(kernels, x)),
        ("gated", lambda: _gated(kernels, x)),
        ("rotate", lambda: _rotations(kernels, x.view(1, 2, 4, 48))),
        ("target_logprobs", lambda: _logprobs(kernels, x)),
        ("dropped", lambda: _dropouts(kernels, x)),
    )
    for name, results in trials:
        if not all(torch.allclose(*both, rtol=_TOLERANCE, atol=_TOLERANCE) for both in results()):
            return name
    return None


# A kernel's result and the expected one.
_Results = tuple[Tensor, Tensor]


def _norms(kernels: ModuleType, x: Tensor) -> Iterator[_Results]:
    weight = torch.linspace(0.5, 1.5, x.shape[1], device=x.device)
    y, inverse_rms = kernels.rms_norm(x, weight, 1e-5, 1.0)
    expected, (d_x,) = _differentiated(lambda x: F.rms_norm(x, (x.shape[1],), weight + 1, 1e-5), x, _outer(x))
    yield y, expected
    yield kernels.rms_norm_backward(_outer(x), x, weight, inverse_rms, 1.0), d_x


def _gated(kernels: ModuleType, x: Tensor) -> Iterator[_Results]:
    activations: dict[str, Callable[[Tensor], Tensor]] = {
        "silu": F.silu, "gelu": F.gelu, "gelu_tanh": partial(F.gelu, approximate="tanh")
    }  # fmt: skip
    gate_up, d_hidden = torch.cat((x, x.flip(0)), 1), _outer(x)
    for name, activation in activations.items():
        expected, (d_gate_up,) = _differentiated(partial(_gated_product, activation), gate_up, d_hidden)
        yield kernels.gated(gate_up, name), expected
        yield from zip(kernels.gated_backward(d_hidden.clone(), gate_up, name), (expected, d_gate_up), strict=True)


def _gated_product(activation: Callable[[Tensor], Tensor], gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, 1)
    return activation(gate) * up


def _rotations(kernels: ModuleType, queries: Tensor) -> Iterator[_Results]:
    cos, sin, half = queries[:, 0].cos(), queries[:, 0].sin(), queries.shape[-1] // 2
    keys = queries[:, 1:].flip(2)
    states = (queries, keys)

    def rotated(x: Tensor) -> Tensor:
        return x * cos[:, None] + torch.cat((-x[..., half:], x[..., :half]), -1) * sin[:, None]

    results, gradients = zip(*(_differentiated(rotated, x, _outer(x)) for x in states), strict=True)
    yield from zip(kernels.rotate(*states, cos, sin, transposed=False), results, strict=True)
    d_states = kernels.rotate(*map(_outer, states), cos, sin, transposed=True)
    yield from zip(d_states, (d_x for (d_x,) in gradients), strict=True)


def _logprobs(kernels: ModuleType, logits: Tensor) -> Iterator[_Results]:
    targets = torch.tensor([0, 5, 95, 7], device=logits.device)
    expected = logits.log_softmax(-1)
    gradient = logits.clone()
    yield (
        kernels.target_logprobs(gradient, targets, 1.0, differentiate=True),
        expected.gather(1, targets[:, None])[:, 0],
    )
    yield gradient, F.one_hot(targets, logits.shape[1]) - expected.exp()


def _dropouts(kernels: ModuleType, x: Tensor) -> Iterator[_Results]:
    ones, total = torch.ones_like(x), x.clone()
    kept = kernels.dropped(ones, 3, 0.5)
    kernels.add_dropped(total, ones, 3, 0.5)
    yield total - x, kept
    # 384 elements: the share has a standard deviation of 2.6 %.
    yield ((kept.mean() - 0.5).abs() < 0.15).float(), torch.ones((), device=x.device)


def _outer(x: Tensor) -> Tensor:
    """Return the gradient of a result with which the backward kernels are run."""
    return (x * 3).sin()


def _differentiated(
    function: Callable[[Tensor], Tensor], x: Tensor, outer: Tensor
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return a function's result and the gradient of its input, by autograd."""
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        result = function(leaf)
        return result.detach(), torch.autograd.grad(result, leaf, outer)
