"""The merge: adding an adapter's update to the weights of its base model, in float32.

1. Weights that an adapted layer shares with another module are copied, so that merging changes the adapted layer alone:
   with tied embeddings, an adapter on `lm_head` must not change `embed_tokens`, nor vice versa.
2. Each layer is merged in float32, W' = W + s B A, and only then cast to the dtype that is saved.
3. The loss of the cast is measured. Example in bfloat16, which has 8 significant bits: neighbors of the weight 1.0 are
   0.0039 below and 0.0078 above it, so an update of 0.001 is lost entirely, while one of 0.01 becomes 0.0078.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper, ModulesToSaveWrapper
from torch import Tensor, nn


@dataclass
class RoundingError:
    """Sums over all merged weights: squares of the adapter's changes, and squares of what the cast lost of them."""

    changed: float = 0.0
    lost: float = 0.0

    def add(self, before: Tensor, merged: Tensor, saved: Tensor) -> None:
        """Add a weight before the merge, after it in float32, and as it is saved; all in one shape."""
        self.changed += float((merged - before).double().square().sum())
        self.lost += float((saved.float() - merged).double().square().sum())

    @property
    def fraction(self) -> float:
        """The ratio of the root mean squares of loss and change; 0 if nothing was changed."""
        return (self.lost / self.changed) ** 0.5 if self.changed else 0.0


def merge_adapter(model: Any, dtype: torch.dtype) -> tuple[Any, RoundingError]:
    """Merge a PeftModel's adapter into its base model. Returns the model in `dtype` and the rounding error.

    `model` is consumed: it must not be used afterwards.
    """
    _untie(model)
    rounding = RoundingError()
    for layer in [module for module in model.modules() if isinstance(module, BaseTunerLayer)]:
        _merge_layer(layer, dtype, rounding)
    for wrapper in [module for module in model.modules() if isinstance(module, ModulesToSaveWrapper)]:
        _measure_whole_layer(wrapper, dtype, rounding)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="All adapters are already merged")
        merged = model.merge_and_unload()
    return merged.to(dtype), rounding


def _merge_layer(layer: Any, dtype: torch.dtype, rounding: RoundingError) -> None:
    base: nn.Module = layer.get_base_layer()
    # An update in bfloat16 would be rounded twice: when it is computed and when it is added.
    base.float()
    before = {name: weight.detach().clone() for name, weight in base.named_parameters()}
    layer.merge()
    merged = {name: weight.detach() for name, weight in base.named_parameters()}
    base.to(dtype)
    for name, weight in base.named_parameters():
        rounding.add(before[name], merged[name], weight.detach())


def _measure_whole_layer(wrapper: ModulesToSaveWrapper, dtype: torch.dtype, rounding: RoundingError) -> None:
    """Add the rounding error of a layer that was trained as a whole, which takes the place of the original one."""
    originals = dict(wrapper.original_module.named_parameters())
    for name, weight in wrapper.modules_to_save["default"].named_parameters():
        trained = weight.detach().float()
        rounding.add(originals[name].detach().float(), trained, trained.to(dtype))


def _untie(model: Any) -> None:
    """Copy the shared weights of every adapted layer, and mark embeddings in the configuration as no longer tied."""
    # The number of modules that hold each weight: more than one for tied weights.
    owners: dict[int, int] = {}
    for module in model.modules():
        for _, weight in _own_weights(module):
            owners[id(weight)] = owners.get(id(weight), 0) + 1
    for layer in model.modules():
        if not isinstance(layer, (BaseTunerLayer, AuxiliaryTrainingWrapper)):
            continue
        base = _innermost(layer)
        for name, weight in list(_own_weights(base)):
            if owners[id(weight)] > 1:
                # The copy belongs to this layer; the last remaining owner keeps the original.
                owners[id(weight)] -= 1
                setattr(base, name, nn.Parameter(weight.detach().clone(), requires_grad=False))
    causal_lm = model.get_base_model()
    embeddings, head = (
        _innermost(found) for found in (causal_lm.get_input_embeddings(), causal_lm.get_output_embeddings())
    )
    if head is not None and getattr(head, "weight", None) is not getattr(embeddings, "weight", None):
        for config in {id(each): each for each in (causal_lm.config, causal_lm.config.get_text_config())}.values():
            config.tie_word_embeddings = False


def _own_weights(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, weight) for name, weight in module._parameters.items() if weight is not None)


def _innermost(module: Any) -> Any:
    while hasattr(module, "base_layer") or isinstance(module, AuxiliaryTrainingWrapper):
        module = module.base_layer if hasattr(module, "base_layer") else module.original_module
    return module
