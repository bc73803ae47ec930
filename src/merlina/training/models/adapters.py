"""What of the model is trained: low-rank adapters (LoRA, arXiv 2106.09685) on a frozen model, or all of it."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import ParamWrapper
from torch import nn
from torch.nn.modules.dropout import _DropoutNd
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from merlina.domain.targets import AdapterKind, Site, by_kind, describe_missing, match
from merlina.errors import ModelError
from merlina.schemas.training import TrainingConfig
from merlina.training.models.targets import count_parameters, module_names, parameter_names, sites, unsupported_names

# Numbers by which modules multiply noise into their inputs while they train.
_NOISE = ("jitter_noise", "input_jitter_noise")


@dataclass
class Trainable:
    """The model with its trained weights in float32, what of `target_modules` it doesn't have, and its adapters.

    `notes` are sentences about what was asked for and can't be had.
    """

    model: nn.Module
    missing_targets: list[str] = field(default_factory=list)
    kinds: list[AdapterKind] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def make_trainable(model: PreTrainedModel, config: TrainingConfig) -> Trainable:
    """Raises ModelError where none of `target_modules` is there."""
    if config.disable_dropout:
        _disable_dropout(model)
    if config.gradient_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    if not config.use_lora:
        # At usual learning rates a step is smaller than what 16 bits can tell apart; the loop computes in them anyway.
        return Trainable(model.float())
    return _adapt(model, config)


@contextlib.contextmanager
def ignore_known_warnings() -> Iterator[None]:
    """Suppress what peft warns of and Merlina handles.

    Adapters on tied embeddings: `merging` separates them before it merges. Weights that a layer holds the other way
    round than another adapted layer, as GPT-2's beside its head: peft sets the right way for each.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to")
        warnings.filterwarnings("ignore", message="Model has `tie_word_embeddings=True` and a tied layer")
        yield


def _disable_dropout(model: nn.Module) -> None:
    """Set every dropout probability of the model to 0. The configuration, which is saved with it, keeps its values.

    Some models have dropout modules (GPT-2), others pass a number of their own to a function (OPT, and attention in
    general); a few also multiply their inputs by noise (Mixtral's `router_jitter_noise`).
    """
    for module in model.modules():
        for name, value in list(vars(module).items()):
            if isinstance(value, float) and ("drop" in name or name in _NOISE):
                setattr(module, name, 0.0)
        if isinstance(module, _DropoutNd):
            module.p = 0.0


def _adapt(model: PreTrainedModel, config: TrainingConfig) -> Trainable:
    found = sites(model)
    chosen, missing = match(found, config.target_modules)
    names = module_names(model, config.target_modules, chosen)
    if lost := unsupported_names(model, names):
        chosen = [site for site in chosen if site.is_parameter or not any(_is_named(site, name) for name in lost)]
        names = [name for name in names if name not in lost]
    parameters = parameter_names(model, chosen)
    if not names and not parameters:
        raise ModelError(describe_missing([*missing, *lost], found, all_missing=True))
    settings = LoraConfig(
        task_type="CAUSAL_LM",
        r=config.lora_r,
        lora_alpha=config.lora_alpha,
        # peft has none for parameters, and refuses it for all layers where there are any.
        lora_dropout=0.0 if parameters else config.lora_dropout,
        # GPT-2 and its kin hold their weights the other way round.
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
        target_modules=names,
        target_parameters=parameters or None,
    )
    counted = count_parameters(model)
    with ignore_known_warnings():
        adapted: Any = get_peft_model(model, settings)
    notes = _notes(missing, lost, has_parameters=bool(parameters), drops=config.lora_dropout > 0)
    if parameters and config.lora_dropout:
        _drop_out_of_layers(adapted, config.lora_dropout)
    return Trainable(adapted, missing, by_kind(found, chosen, config.lora_r, counted), notes)


def _is_named(site: Site, name: str) -> bool:
    return f".{site.path}".endswith(f".{name}")


def _notes(missing: list[str], lost: list[str], *, has_parameters: bool, drops: bool) -> list[str]:
    notes = [describe_missing(missing, (), all_missing=False)] if missing else []
    if lost:
        notes.append(
            f"target_modules: {', '.join(lost)} can't have adapters in this architecture, since peft takes the names "
            "for those of its routed experts"
        )
    if has_parameters and drops:
        notes.append("lora_dropout: the routed experts are trained without dropout, which peft has only for layers")
    return notes


def _drop_out_of_layers(model: nn.Module, share: float) -> None:
    for module in model.modules():
        if isinstance(module, LoraLayer) and not isinstance(module, ParamWrapper):
            module.lora_dropout.update({"default": nn.Dropout(share)})
