"""The choice of Triton kernels: used on a GPU on which each of them gives the result of torch's own operations."""

from __future__ import annotations

import os
from functools import cache
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
    return _checked(tensor.device)[0]


def kernel_obstacle(device: torch.device) -> str | None:
    """Return why a GPU does not use the kernels, as the rest of a sentence about them; None if it does, or no GPU."""
    return _checked(device)[1] if device.type == "cuda" else None


@cache
def _checked(device: torch.device) -> tuple[ModuleType | None, str | None]:
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
    """Run each kernel once; return the name of the first whose result differs from torch's own operations."""
    x = torch.linspace(-2, 2, 4 * 96, device=device).view(4, 96)
    weight = torch.linspace(0.5, 1.5, 96, device=device)
    normed, inverse = kernels.rms_norm(x, weight, 1e-5, 0.0)
    targets = torch.tensor([0, 5, 95, 7], device=device)
    logits = x.clone()
    logprobs = kernels.target_logprobs(logits, targets, 1.0, differentiate=True)
    expected_logprobs = x.log_softmax(-1)
    onehot = F.one_hot(targets, 96).float()
    states = x.view(1, 2, 4, 48)
    cos, sin = states[:, 0].cos(), states[:, 0].sin()
    rotated = torch.cat((-states[..., 24:], states[..., :24]), -1)
    expected_states = states * cos[:, None] + rotated * sin[:, None]
    kept = kernels.dropped(torch.ones_like(x), 3, 0.5)
    total = x.clone()
    kernels.add_dropped(total, torch.ones_like(x), 3, 0.5)
    results = {
        "rms_norm": (normed, F.rms_norm(x, (96,), weight, 1e-5)),
        "rms_norm_backward": (
            (kernels.rms_norm_backward(normed, x, torch.ones_like(weight), inverse, 0.0) * x).sum(-1),
            1e-5 * (normed * x).sum(-1) * inverse**3,
        ),
        "target_logprobs": (logprobs, expected_logprobs.gather(1, targets[:, None])[:, 0]),
        "target_logprobs, gradient": (logits, onehot - expected_logprobs.exp()),
        "gated": (kernels.gated(x, x, "silu"), F.silu(x) * x),
        "gated_backward": (
            kernels.gated_backward(torch.ones_like(x), x, x, "silu")[0],
            torch.ops.aten.silu_backward(x, x),
        ),
        "rotate": (kernels.rotate(states, cos, sin, inverse=False), expected_states),
        "dropped": (total - x, kept),
    }
    for name, (found, expected) in results.items():
        if not torch.allclose(found, expected, rtol=_TOLERANCE, atol=_TOLERANCE):
            return name
    return None
