"""The operations that the engine dispatches in each layer of a model."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from merlina.training.engine import kernel_choice
from merlina.training.engine.fast_path import choose_logprob_model
from merlina.training.engine.packing import PackedExample, build_pack
from tests.training.models import adapted, random_model

# Operations that compute nothing.
_VIEWS = {
    "_unsafe_view", "alias", "as_strided", "detach", "empty", "empty_like", "expand", "new_empty",
    "new_empty_strided", "permute", "resize_", "select",
    "slice", "split", "split_with_sizes", "squeeze", "t", "transpose", "unsqueeze", "view",
}  # fmt: skip
# Short, since the interpreter takes milliseconds for each position.
_EXAMPLE = PackedExample([5, 6, 7], ([8, 9, 10], [11, 12]))
_KERNELS = ("rms_norm", "rms_norm_backward", "gated", "gated_backward", "rotate", "dropped", "add_dropped")


class _Count(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.counted: Counter[str] = Counter()

    def __torch_dispatch__(self, operation: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = operation.overloadpacket.__name__
        if name not in _VIEWS:
            self.counted[name] += 1
        return operation(*args, **(kwargs or {}))


def operations_per_layer(dropout: float) -> Counter[str]:
    """Return the operations of a layer's forward and backward pass by name, with adapters on all linear layers."""
    # The difference of two depths: embeddings, the output head, and the first and the last layer cancel out.
    return _operations(3, dropout) - _operations(2, dropout)


def _operations(layers: int, dropout: float) -> Counter[str]:
    model = adapted(random_model(num_hidden_layers=layers), dropout=dropout)
    pack = build_pack([_EXAMPLE], with_prompt_targets=True)
    run, reason = choose_logprob_model(model, pack, 0, "sdpa", nullcontext())
    assert reason is None
    model.train()
    kernels = kernel_choice.kernels_for(torch.empty(0))
    with run.unchanged_weights(), _Count() as mode:
        originals = {name: getattr(kernels, name) for name in _KERNELS} if kernels else {}
        for name, original in originals.items():
            setattr(kernels, name, functools.partial(_as_one, mode, name, original))
        try:
            run(pack).sums.sum().backward()
        finally:
            for name, original in originals.items():
                setattr(kernels, name, original)
    return mode.counted


def _as_one(mode: _Count, name: str, kernel: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    mode.counted[f"kernel {name}"] += 1
    with _disable_current_modes():
        return kernel(*args, **kwargs)
