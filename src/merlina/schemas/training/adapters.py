"""Settings of what is trained: adapters (LoRA) or all weights (see `TrainingConfig`)."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator

from merlina.domain.adapter_targets import ALL_LINEAR, EXPERTS
from merlina.schemas.base import RequestModel

_DEFAULT_TARGETS = ["up_proj", "down_proj", "gate_proj", "k_proj", "q_proj", "v_proj", "o_proj"]


class AdapterFields(RequestModel):
    """Settings of what is trained: adapters (LoRA) or all weights."""

    use_lora: bool = Field(
        default=True, description="Train adapters on the frozen model. false trains all weights, with far more memory."
    )
    lora_r: int = Field(
        default=64,
        ge=1,
        le=1024,
        description="Rank of the adapters. A higher rank can learn more and needs more memory; 16 to 64 is enough "
        "for a style.",
    )
    lora_alpha: int = Field(
        default=32, ge=1, le=4096, description="Scale of the adapters: outputs are multiplied by lora_alpha / lora_r."
    )
    use_rslora: bool = Field(
        default=False,
        description="Scale the adapters by lora_alpha / √lora_r instead (rsLoRA), so that a high rank does not make "
        "updates smaller. Use it with a rank above 64 and a lower lora_alpha.",
    )
    use_dora: bool = Field(
        default=False,
        description="Also train the magnitude of each row of an adapted layer's weights (DoRA). May help at ranks "
        "below 16; slower. Only for linear layers other than the output head, and not with use_8bit.",
    )
    lora_dropout: float = Field(
        default=0.05, ge=0, lt=1, description="Dropout probability of adapter inputs. Raise it if the run overfits."
    )
    disable_dropout: bool = Field(
        default=True, description="Disable the base model's own dropout, as TRL does. Does not affect lora_dropout."
    )
    target_modules: list[str] = Field(
        default_factory=lambda: list(_DEFAULT_TARGETS),
        min_length=1,
        description="Names of the layers that get adapters. `all-linear`: every linear layer except the output "
        "head. `experts`: the routed experts of a mixture-of-experts model.",
    )

    modules_to_save: list[str] | None = Field(
        default=None,
        min_length=1,
        description="Names of layers to train as a whole beside the adapters, and to save with them, such as "
        "embed_tokens and lm_head to learn a new chat format or language. null: none.",
    )

    @field_validator("target_modules", mode="before")
    @classmethod
    def _may_be_all_linear(cls, value: Any) -> Any:
        if value == ALL_LINEAR:
            return [value]
        if not isinstance(value, (list, tuple, set)):
            given = f", not {value[:60]!r}" if isinstance(value, str) else ""
            raise ValueError(f'must be a list of layer names, or "{ALL_LINEAR}"{given}')
        return value

    @field_validator("target_modules", "modules_to_save")
    @classmethod
    def _are_layer_names(cls, value: list[str] | None) -> list[str] | None:
        if any(not name.strip() for name in value or ()):
            raise ValueError("contains an empty layer name")
        return value

    @field_validator("modules_to_save")
    @classmethod
    def _name_single_layers(cls, value: list[str] | None) -> list[str] | None:
        if {ALL_LINEAR, EXPERTS} & set(value or ()):
            raise ValueError(
                f"takes names of layers, not {ALL_LINEAR!r} or {EXPERTS!r}; use_lora false trains all weights"
            )
        return value
