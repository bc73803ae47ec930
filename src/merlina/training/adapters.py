"""What of the model is trained: low-rank adapters (LoRA, arXiv 2106.09685) on a frozen model, or all of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn.modules.dropout import _DropoutNd
from transformers import PreTrainedModel

from merlina.errors import ModelError
from merlina.schemas.training import TrainingConfig

# Numbers by which modules multiply noise into their inputs while they train.
_NOISE = ("jitter_noise", "input_jitter_noise")


@dataclass
class Trainable:
    """The model with its trained weights in float32, and what of `target_modules` it doesn't have."""

    model: nn.Module
    missing_targets: list[str] = field(default_factory=list)


def make_trainable(model: PreTrainedModel, config: TrainingConfig) -> Trainable:
    """Raises ModelError where none of `target_modules` is there."""
    if config.disable_dropout:
        _disable_dropout(model)
    if config.gradient_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    if not config.use_lora:
        # At usual learning rates a step is smaller than what 16 bits can tell apart; the loop computes in them anyway.
        return Trainable(model.float())
    present, missing = _match_targets(model, config.target_modules)
    adapted: Any = get_peft_model(model, _lora(config, present))
    return Trainable(adapted, missing)


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


def _lora(config: TrainingConfig, targets: list[str]) -> LoraConfig:
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=config.lora_r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=targets,
    )


def _match_targets(model: PreTrainedModel, wanted: list[str]) -> tuple[list[str], list[str]]:
    names = {name for name, _ in model.named_modules()}
    present = [target for target in wanted if any(name == target or name.endswith(f".{target}") for name in names)]
    if present:
        return present, [target for target in wanted if target not in present]
    linear = {name.rsplit(".", 1)[-1] for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    raise ModelError(
        f"target_modules: the model has no layers named {', '.join(wanted)}; it has {', '.join(sorted(linear))}"
    )
