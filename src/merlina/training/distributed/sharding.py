"""A frozen model's weights spread over the ranks: each holds a part, and a layer is put together where it is computed.

torch's FSDP 2 (fully_shard) does that. What is trained stays whole on each rank, so that gradients, optimizer state and
checkpoints are as they are without it. Every rank must run the same number of passes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from merlina.training.engine.logprobs import unwrap


def shard_frozen_weights(model: nn.Module, mesh: DeviceMesh) -> None:
    """Moves the model to the mesh's devices, of each layer's matrices only this rank's part. In place.

    Embeddings, output head, and whatever is small or trained are held by every rank.
    """
    causal_lm = unwrap(model)
    layers = [module for module in causal_lm.modules() if type(module).__name__ in (causal_lm._no_split_modules or ())]
    held_by_all = _held_by_all(model, layers)
    for layer in layers:
        fully_shard(layer, mesh=mesh, ignored_params=held_by_all)
    # Without weights of its own: it lets one layer be put together while the one before is computed.
    fully_shard(causal_lm.get_decoder(), mesh=mesh, ignored_params=held_by_all)
    model.to(mesh.device_type)


def is_sharded(model: nn.Module) -> bool:
    """Whether each rank has only a part of it."""
    return any(isinstance(module, FSDPModule) for module in model.modules())


def sharded_layers(model: nn.Module) -> list[nn.Module]:
    """Those layers that are put together one by one, or the model itself where it isn't spread."""
    spread: list[nn.Module] = [module for module in model.modules() if isinstance(module, FSDPModule)]
    return spread[1:] or [model]


@contextlib.contextmanager
def gathered(module: nn.Module) -> Iterator[None]:
    """With all weights of a module in place. All ranks must come by here."""
    if not isinstance(module, FSDPModule):
        yield
        return
    module.unshard()
    try:
        yield
    finally:
        module.reshard()


def _held_by_all(model: nn.Module, layers: list[Any]) -> set[nn.Parameter]:
    matrices = {
        weight for layer in layers for weight in layer.parameters() if weight.ndim > 1 and not weight.requires_grad
    }
    return {weight for weight in model.parameters() if weight not in matrices}
