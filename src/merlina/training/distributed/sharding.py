"""Sharding of a frozen model over ranks: each rank holds a part of every layer, which is gathered to compute it.

torch's FSDP 2 (`fully_shard`) implements this. Trained weights stay whole on every rank, so gradients, optimizer state
and checkpoints are the same as without sharding. All ranks must run the same number of passes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from merlina.training.models.unwrapping import unwrap


def shard_frozen_weights(model: nn.Module, mesh: DeviceMesh) -> None:
    """Move the model to the mesh's devices, with only this rank's shard of each layer's matrices, in place.

    Every rank holds embeddings, output head, vectors and trained weights as a whole.
    """
    causal_lm = unwrap(model)
    layers = [module for module in causal_lm.modules() if type(module).__name__ in (causal_lm._no_split_modules or ())]
    unsharded = _unsharded_weights(model, layers)
    for layer in layers:
        fully_shard(layer, mesh=mesh, ignored_params=unsharded)
    # The decoder has no weights of its own, but sharding it makes FSDP gather a layer while the previous one computes.
    fully_shard(causal_lm.get_decoder(), mesh=mesh, ignored_params=unsharded)
    model.to(mesh.device_type)


def is_sharded(model: nn.Module) -> bool:
    """Return whether each rank has only a shard of the model."""
    return any(isinstance(module, FSDPModule) for module in model.modules())


def sharded_layers(model: nn.Module) -> list[nn.Module]:
    """Return the layers that are gathered one by one, or the model itself if it is not sharded."""
    sharded: list[nn.Module] = [module for module in model.modules() if isinstance(module, FSDPModule)]
    # The first one is the decoder, see above.
    return sharded[1:] or [model]


@contextlib.contextmanager
def gathered(module: nn.Module) -> Iterator[None]:
    """Gather all weights of a module inside this context. All ranks must enter it."""
    # Without sharding, all weights are present already.
    if not isinstance(module, FSDPModule):
        yield
        return
    module.unshard()
    try:
        yield
    finally:
        module.reshard()


def _unsharded_weights(model: nn.Module, layers: list[Any]) -> set[nn.Parameter]:
    # Vectors, such as those of norms, are too small to be worth a gather.
    matrices = {
        weight for layer in layers for weight in layer.parameters() if weight.ndim > 1 and not weight.requires_grad
    }
    return {weight for weight in model.parameters() if weight not in matrices}
