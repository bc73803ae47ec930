"""The trained part of a model: low-rank adapters (LoRA, arXiv 2106.09685) on a frozen model, or all weights."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import ParamWrapper
from peft.utils.integrations import dequantize_module_weight
from peft.utils.other import ModulesToSaveWrapper
from torch import nn
from torch.nn.modules.dropout import _DropoutNd
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from merlina.domain.adapter_targets import (
    LINEAR_LAYERS_ONLY,
    AdapterKind,
    Site,
    by_kind,
    describe_missing,
    match,
    match_whole_layers,
)
from merlina.errors import ModelError
from merlina.schemas.training.config import TrainingConfig
from merlina.training.models.adapter_targets import (
    count_parameters,
    is_named,
    module_names,
    parameter_names,
    sites,
    unsupported_names,
)

# Attributes that hold the amplitude of noise by which modules multiply their inputs in training.
_NOISE = ("jitter_noise", "input_jitter_noise")


@dataclass
class Trainable:
    """A model with its trained weights in float32, and its adapters.

    `notes` are messages to the user about settings that cannot be applied or that make training slower.
    """

    model: nn.Module
    kinds: list[AdapterKind] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def make_trainable(model: PreTrainedModel, config: TrainingConfig) -> Trainable:
    """Prepare a model for training.

    Raises ModelError if it has none of the `target_modules`, or if `use_dora` or `modules_to_save` cannot be applied.
    """
    if config.disable_dropout:
        _disable_dropout(model)
    if config.gradient_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    if not config.use_lora:
        # At usual learning rates an update is smaller than the spacing of 16-bit numbers, so weights are float32.
        # Passes still compute in 16 bits, under autocast.
        return Trainable(model.float())
    return _adapt(model, config)


@contextlib.contextmanager
def ignore_known_warnings() -> Iterator[None]:
    """Suppress warnings of peft about cases that Merlina handles.

    Adapters on tied embeddings: `merging` separates them before it merges. Layers that store their weights transposed,
    unlike other adapted layers, such as GPT-2's next to its head: peft sets the right orientation for each.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to")
        warnings.filterwarnings("ignore", message="Model has `tie_word_embeddings=True` and a tied layer")
        yield


def _disable_dropout(model: nn.Module) -> None:
    """Set every dropout probability of the model to 0. The configuration that is saved with it keeps its values.

    Some models have dropout modules (GPT-2), others pass an attribute to a function (OPT, and attention in general); a
    few also multiply their inputs by noise (Mixtral's `router_jitter_noise`).
    """
    for module in model.modules():
        for name, value in list(vars(module).items()):
            if isinstance(value, float) and ("drop" in name or name in _NOISE):
                setattr(module, name, 0.0)
        if isinstance(module, _DropoutNd):
            module.p = 0.0


def _adapt(model: PreTrainedModel, config: TrainingConfig) -> Trainable:
    """Add adapters to a model. Raises ModelError as `make_trainable`."""
    found = sites(model)
    chosen, missing = match(found, config.target_modules)
    names = module_names(model, config.target_modules, chosen)
    if lost := unsupported_names(model, names):
        chosen = [site for site in chosen if site.is_parameter or not any(is_named(site.path, name) for name in lost)]
        names = [name for name in names if name not in lost]
    parameters = parameter_names(model, chosen)
    if config.use_dora and not all(site.is_linear_layer for site in chosen):
        raise ModelError(f"use_dora: {LINEAR_LAYERS_ONLY}")
    if not names and not parameters:
        raise ModelError(f"target_modules: {describe_missing([*missing, *lost], found, all_missing=True)}")
    whole = _whole_layers(model, found, config)
    settings = LoraConfig(
        task_type="CAUSAL_LM",
        r=config.lora_r,
        lora_alpha=config.lora_alpha,
        use_rslora=config.use_rslora,
        use_dora=config.use_dora,
        # peft has no dropout for parameters and refuses any dropout if there are some; layers get theirs below.
        lora_dropout=0.0 if parameters else config.lora_dropout,
        # GPT-2 and related models store their weights transposed.
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
        target_modules=names,
        target_parameters=parameters or None,
        modules_to_save=whole or None,
    )
    counted = count_parameters(model)
    with ignore_known_warnings():
        adapted: Any = get_peft_model(model, settings)
    _set_magnitudes(adapted)
    use_float32_for_whole_layers(adapted)
    notes = _notes(missing, lost, has_parameters=bool(parameters), drops=config.lora_dropout > 0)
    if config.use_dora:
        notes.append("use_dora: adapted layers are computed one by one by peft, which is slower than without it")
    if parameters and config.lora_dropout:
        _set_layer_dropout(adapted, config.lora_dropout)
    return Trainable(adapted, by_kind(found, chosen, config.lora_r, counted, has_magnitudes=config.use_dora), notes)


def _whole_layers(model: PreTrainedModel, found: list[Site], config: TrainingConfig) -> list[str]:
    """Return names by which peft finds the layers of `modules_to_save`. Raises ModelError if one cannot be trained."""
    if config.modules_to_save is None:
        return []
    is_quantized = config.weight_bits is not None
    chosen, problem = match_whole_layers(
        found, config.modules_to_save, config.target_modules, is_quantized=is_quantized
    )
    if problem is not None:
        raise ModelError(f"modules_to_save: {problem}")
    return module_names(model, config.modules_to_save, chosen)


def use_float32_for_whole_layers(model: nn.Module) -> None:
    """Hold layers that are trained as a whole in float32, in which small updates are not lost.

    Embeddings are rounded to the model's dtype where they are used, as those of the reference are: otherwise all layers
    of the policy, and none of the reference, would compute in float32.
    """
    for module in model.modules():
        if isinstance(module, ModulesToSaveWrapper):
            dtype = next(module.original_module.parameters()).dtype
            for trained in module.modules_to_save.values():
                trained.float()
                if isinstance(trained, nn.Embedding) and dtype != torch.float32:
                    trained.register_forward_hook(partial(_rounded, dtype))


def _rounded(dtype: torch.dtype, _module: nn.Module, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
    return output.to(dtype)


@torch.no_grad()
def _set_magnitudes(model: nn.Module) -> None:
    """Compute the magnitudes of DoRA in float32, as each forward pass computes the norms by which it divides them.

    peft rounds them to the dtype of the model: in bfloat16, the model would differ from its reference before training.
    """
    layers: list[Any] = [module for module in model.modules() if isinstance(module, LoraLayer)]
    for layer in layers:
        for magnitude in layer.lora_magnitude_vector.values():
            weight = dequantize_module_weight(layer.get_base_layer()).float()
            # A new adapter adds nothing to the weight.
            magnitude.weight.copy_(magnitude.get_weight_norm(weight, weight.new_zeros(()), scaling=1))


def _notes(missing: list[str], lost: list[str], *, has_parameters: bool, drops: bool) -> list[str]:
    notes = [f"target_modules: {describe_missing(missing, (), all_missing=False)}"] if missing else []
    if lost:
        notes.append(
            f"target_modules: {', '.join(lost)} cannot have adapters in this architecture, since peft takes the names "
            "for those of its routed experts"
        )
    if has_parameters and drops:
        notes.append(
            "lora_dropout: the routed experts are trained without dropout, which peft supports only for layers"
        )
    return notes


def _set_layer_dropout(model: nn.Module, rate: float) -> None:
    for module in model.modules():
        if isinstance(module, LoraLayer) and not isinstance(module, ParamWrapper):
            module.lora_dropout.update({"default": nn.Dropout(rate)})
