"""Adapted linear layers as passes compute them: frozen weights, and adapters in the dtype of the pass.

Layers that read the same input form a group, which is computed as one layer: an attention's q, k and v projections, a
feed-forward's gate and up projections. A layer without such siblings is a group by itself. A group has one product for
all of its A, and on a GPU, where `join` places the frozen weights next to each other in memory, one for all of them.

Legend: I inputs, O outputs of all layers of a group, R the sum of their adapters' ranks; o and r those of one layer.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

# The attribute of an adapted module that holds its group.
_GROUP = "_adapter_group"
# Projections that read the same input if they are parts of one module.
_SIBLINGS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


class FrozenWeight(NamedTuple):
    """The frozen weight of a linear layer, or of several joined ones, as it is stored."""

    weight: Tensor  # [o, I]; 4-bit weights in the packed shape of bitsandbytes
    bias: Tensor | None  # [o]
    outputs: int  # o
    quantization: (
        Any  # 4 bits: the state that bitsandbytes keeps; 8 bits: each row's largest absolute value [o]; else None
    )

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        """Return the weight in `dtype`, shape [o, I]."""
        if self.quantization is None:
            return self.weight if self.weight.dtype == dtype else self.weight.to(dtype)
        if isinstance(self.quantization, Tensor):
            # int8 weights are in units of a 127th of their row's largest value.
            return self.weight.to(dtype).mul_((self.quantization / 127).to(dtype)[:, None])
        from bitsandbytes.functional import dequantize_4bit

        return dequantize_4bit(self.weight.detach(), self.quantization).to(dtype)


class AdapterCast(NamedTuple):
    """A copy of a group's adapters in the dtype of the pass."""

    a: Tensor  # lora_A of all layers [R, I]
    b: list[Tensor]  # lora_B of each layer [o, r]
    outputs: list[int]  # o of each layer
    ranks: list[int]  # r of each layer

    def weights(self) -> list[Tensor]:
        """Return the A and B of each layer, in the order of `AdapterGroup.weights`."""
        a = self.a.split(self.ranks) if len(self.ranks) > 1 else (self.a,)
        return [weight for pair in zip(a, self.b, strict=True) for weight in pair]


class AdapterGroup:
    """Adapted layers with the same input, scale and dropout rate, computed as one; usually a single layer."""

    def __init__(self, modules: Sequence[Any]) -> None:
        self.modules = tuple(modules)
        self.outputs = [module.out_features for module in self.modules]
        # Trained weights in the order of gradients: A and B of each layer.
        self.weights: list[nn.Parameter] = [weight for module in self.modules for weight in _adapter_weights(module)]
        # What `adapted_linear` computed with one layer for others that have not been called yet, each [..., o], and the
        # input [..., I] for which it did so, with its version.
        self.results: dict[Any, Tensor] = {}
        self.computed_for: tuple[Tensor, int] | None = None
        self._bases = [module.base_layer for module in self.modules]
        self._scaling = float(modules[0].scaling["default"])
        self._dropout_rate = _dropout_rate(modules[0])
        self._held: AdapterCast | None = None
        for module in self.modules:
            module.__dict__[_GROUP] = self

    @property
    def scale(self) -> float:
        """The factor of the adapters, 1 / (1 - p) for a dropout rate of p included."""
        return self._scaling / (1 - self.dropout_rate)

    @property
    def dropout_rate(self) -> float:
        """The probability with which elements of the adapters' input are dropped: 0 in evaluation mode."""
        return self._dropout_rate if self.modules[0].training else 0.0

    def empty_adapter(self, dtype: torch.dtype) -> AdapterCast:
        """Return an adapter of the group's shapes, without values."""
        a, b = self.weights[::2], self.weights[1::2]
        ranks = [weight.shape[0] for weight in a]
        joined = a[0].new_empty(sum(ranks), a[0].shape[1], dtype=dtype)
        return AdapterCast(joined, [torch.empty_like(weight, dtype=dtype) for weight in b], self.outputs, ranks)

    def adapter(self, dtype: torch.dtype) -> AdapterCast:
        """Return the adapters in `dtype`: those that `AdapterCasts` holds, or a new cast."""
        if self._held is not None and self._held.a.dtype == dtype:
            return self._held
        adapter = self.empty_adapter(dtype)
        with torch.no_grad():
            torch._foreach_copy_(adapter.weights(), list(self.weights))
        return adapter

    def frozen(self) -> tuple[FrozenWeight, ...]:
        """Return the frozen weights: a single one if they are joined, otherwise that of each layer.

        They are read in each pass, since a sharded layer has its weights only while it is computed.
        """
        bases = self._bases
        if len(bases) > 1 and all(type(base) is nn.Linear for base in bases):
            weight, biases = _joined([base.weight for base in bases]), [base.bias for base in bases]
            bias = _joined(biases) if None not in biases else None
            if weight is not None and (bias is not None or biases.count(None) == len(biases)):
                return (FrozenWeight(weight, bias, sum(self.outputs), None),)
        return tuple(FrozenWeight(base.weight, base.bias, base.out_features, _quantization(base)) for base in bases)

    def join(self) -> None:
        """Place the layers' frozen weights next to each other in memory, if their dtypes and kinds allow it."""
        bases = self._bases
        if len(bases) == 1 or any(type(base) is not nn.Linear for base in bases):
            return
        for tensors in ([base.weight for base in bases], [base.bias for base in bases if base.bias is not None]):
            alike = len(tensors) == len(bases) and len({(tensor.dtype, tensor.device) for tensor in tensors}) == 1
            if alike and _joined(tensors) is None:
                parts = torch.cat([tensor.data for tensor in tensors]).split([len(tensor) for tensor in tensors])
                for tensor, part in zip(tensors, parts, strict=True):
                    tensor.data = part

    def hold(self, adapter: AdapterCast | None) -> None:
        """Use a cast of the adapters in place of new ones, until None is given."""
        self._held = adapter

    def forget_results(self) -> None:
        """Drop the results of layers that were not called, which would keep the memory of a pass."""
        self.computed_for, self.results = None, {}

    def dissolve(self) -> None:
        """Make each layer a group by itself, since they do not read the same input, or not all are computed."""
        self.forget_results()
        for module in self.modules:
            AdapterGroup([module])


class AdapterCasts:
    """The adapters of a model, cast once for several passes instead of in each layer of each pass."""

    def __init__(self, model: nn.Module) -> None:
        # Adapters without a group, in a model with its own layers, are computed by peft.
        self._modules: list[Any] = [module for module in model.modules() if _GROUP in module.__dict__]
        # Kept from step to step, and overwritten by the next.
        self._dtype: torch.dtype | None = None
        self._adapters: dict[AdapterGroup, AdapterCast] = {}

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Use one copy of each adapter for all passes inside this context, in which its weights must not change.

        Backward passes must be completed inside as well: the next context overwrites the copies. Groups of
        layers that were not all called with the same input are dissolved at the end.
        """
        groups = self._groups()
        if groups:
            self._cast(groups)
        for group in groups:
            group.hold(self._adapters[group])
        try:
            yield
        except BaseException:
            self.forget_results()
            raise
        finally:
            for group in groups:
                group.hold(None)
                # A layer that was not called has no gradient; computed with its group, it would have one of zeros.
                if group.results:
                    group.dissolve()

    def forget_results(self) -> None:
        """Drop what a pass that failed computed for layers it did not reach, and with it the memory of its graph."""
        for group in self._groups():
            group.forget_results()

    def _groups(self) -> list[AdapterGroup]:
        return list(dict.fromkeys(map(group_of, self._modules)))

    def _cast(self, groups: list[AdapterGroup]) -> None:
        """Copy the adapters of groups in the dtype of the surrounding context."""
        kind = groups[0].weights[0].device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else groups[0].weights[0].dtype
        if dtype != self._dtype or list(self._adapters) != groups:
            self._dtype, self._adapters = dtype, {group: group.empty_adapter(dtype) for group in groups}
        copies = [copy for adapter in self._adapters.values() for copy in adapter.weights()]
        with torch.no_grad():
            # One kernel for many tensors.
            torch._foreach_copy_(copies, [weight for group in groups for weight in group.weights])


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


def group_adapters(model: nn.Module) -> list[AdapterGroup]:
    """Assign every plain adapter of a model to a group. Returns the groups."""
    groups, grouped = [], set()
    for parent in model.modules():
        for names in _SIBLINGS:
            siblings = [getattr(parent, name, None) for name in names]
            siblings = [module for module in siblings if is_plain_adapter(module)]
            if len(siblings) > 1 and len(set(map(_shared_properties, siblings))) == 1:
                groups.append(AdapterGroup(siblings))
                grouped.update(siblings)
    singles = [module for module in model.modules() if is_plain_adapter(module) and module not in grouped]
    return [*groups, *(AdapterGroup([module]) for module in singles)]


def ungroup_adapters(model: nn.Module) -> None:
    """Remove the groups that `group_adapters` assigned."""
    for module in model.modules():
        module.__dict__.pop(_GROUP, None)


def group_of(module: Any) -> AdapterGroup:
    """Return the group of a plain adapter, which `group_adapters` assigned."""
    group: AdapterGroup = module.__dict__[_GROUP]
    return group


def _shared_properties(module: Any) -> tuple[Any, ...]:
    """Return what the layers of a group have in common."""
    weight = module.base_layer.weight
    rate = _dropout_rate(module)
    return module.in_features, module.scaling["default"], rate, weight.device, type(module.base_layer)


def _adapter_weights(module: Any) -> tuple[nn.Parameter, nn.Parameter]:
    """Return the trained weights A [r, I] and B [o, r]."""
    return module.lora_A["default"].weight, module.lora_B["default"].weight


def _dropout_rate(module: Any) -> float:
    """Return the probability with which an adapter drops elements of its input in training mode."""
    dropout = module.lora_dropout["default"]
    return 0.0 if isinstance(dropout, nn.Identity) else float(dropout.p)


def _quantization(base: Any) -> Any:
    """Return what `FrozenWeight.quantization` holds for a layer."""
    if type(base).__name__ != "Linear8bitLt":
        return getattr(base.weight, "quant_state", None)
    # bitsandbytes moves the rows' maxima from the weight to the layer's state in the first forward pass.
    return base.weight.SCB if base.state.SCB is None else base.state.SCB


def _joined(tensors: Sequence[Tensor]) -> Tensor | None:
    """Return tensors that follow each other in one storage, as `join` places them, as one tensor; None if they do not.

    Checked in each pass, since weights may have been replaced or cast since.
    """
    first = tensors[0].detach()
    storage, address = first.untyped_storage().data_ptr(), first.data_ptr()
    for tensor in tensors:
        is_next = tensor.data_ptr() == address and tensor.untyped_storage().data_ptr() == storage
        if not is_next or tensor.dtype != first.dtype or tensor.stride() != first.stride():
            return None
        address += tensor.nbytes
    return first.as_strided((sum(tensor.shape[0] for tensor in tensors), *first.shape[1:]), first.stride())
