"""TrainingConfig: all settings of a run with ranges, defaults and help (as a table: docs/settings-of-a-run.md)."""

from __future__ import annotations

import math
import re
from typing import Any, Self, get_args

from pydantic import Field, field_validator, model_validator

from merlina.schemas.base import RequestModel
from merlina.schemas.datasets.config import DatasetConfig, TrainingMode
from merlina.schemas.parsing.validation_errors import at_field
from merlina.schemas.training.adapters import AdapterFields
from merlina.schemas.training.machine import MachineFields
from merlina.schemas.training.method import MethodFields
from merlina.schemas.training.publishing import SECRET_FIELDS, PublishingFields
from merlina.schemas.training.steps import StepFields

OUTPUT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}(/[A-Za-z0-9][A-Za-z0-9._-]{0,95})?")


def default_prompt_length(max_length: int) -> int:
    """Return the default of `max_prompt_length` in tokens: half of `max_length`."""
    return max_length // 2


def upgrade(given: dict[str, Any]) -> dict[str, Any]:
    """Return a whole or partial configuration in its current form.

    Older clients send `training_mode` inside `dataset`, and `hf_namespace: null`.
    """
    config = {name: value for name, value in given.items() if (name, value) != ("hf_namespace", None)}
    dataset = config.get("dataset")
    mode = dataset.get("training_mode") if isinstance(dataset, dict) else getattr(dataset, "training_mode", None)
    if mode in get_args(TrainingMode):
        config = {"training_mode": mode, **config}
    # An unknown or contradicting value stays where it is, so that validation rejects it.
    agrees = mode is None or (mode == config.get("training_mode") and mode in get_args(TrainingMode))
    if isinstance(dataset, dict) and agrees:
        config["dataset"] = {name: value for name, value in dataset.items() if name != "training_mode"}
    return config


class _RequiredFields(RequestModel):
    base_model: str = Field(
        min_length=1, max_length=4096, description="Model to train: Hub id, folder or `.gguf` file on the server."
    )
    output_name: str = Field(
        description="Name of the finished model and of its folder below MODELS_DIR. `org/name` needs push_to_hub "
        "and also names the Hub repository.",
        json_schema_extra={"pattern": f"^{OUTPUT_NAME.pattern}$"},
    )
    dataset: DatasetConfig

    @field_validator("output_name")
    @classmethod
    def _is_a_name(cls, value: str) -> str:
        if not OUTPUT_NAME.fullmatch(value) or value.endswith("."):
            raise ValueError(
                f"{value[:100]!r} is not a valid name: use letters, digits, '.', '_' and '-', a letter or digit first"
            )
        return value


# pydantic orders fields from the last base to the first.
class TrainingConfig(PublishingFields, MachineFields, StepFields, AdapterFields, MethodFields, _RequiredFields):
    """Configuration of one run. `base_model`, `output_name` and `dataset` are required; the rest has defaults."""

    @model_validator(mode="before")
    @classmethod
    def _accept_older_forms(cls, given: Any) -> Any:
        return upgrade(given) if isinstance(given, dict) else given

    @model_validator(mode="before")
    @classmethod
    def _derive_defaults(cls, given: Any) -> Any:
        """Derive the defaults of missing fields that depend on fields that are given."""
        if not isinstance(given, dict):
            return given
        derived: dict[str, Any] = {}
        if given.get("use_8bit") is True:
            derived["use_4bit"] = False
        max_length = given.get("max_length")
        if isinstance(max_length, int | float) and math.isfinite(max_length):
            derived["max_prompt_length"] = default_prompt_length(int(max_length))
        return {**derived, **given}

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if self.max_prompt_length >= self.max_length:
            raise at_field(
                "max_prompt_length",
                f"{self.max_prompt_length} must be below max_length ({self.max_length}) to leave tokens for an answer",
            )
        if self.dataset.training_mode not in (None, self.training_mode):
            raise at_field(
                "dataset.training_mode",
                f"{self.dataset.training_mode!r} differs from training_mode {self.training_mode!r}; leave it out",
            )
        for name in ("early_stopping_patience", "load_best_at_end"):
            if getattr(self, name) is not None and (self.eval_steps == 0 or not self.dataset.has_evaluation):
                raise at_field(
                    name,
                    "needs evaluations: eval_steps above 0, and dataset.test_size above 0 or an eval_source",
                )
        if self.training_mode == "sft" and self.load_best_at_end == "eval_reward_margin":
            raise at_field("load_best_at_end", "sft has no eval_reward_margin; use eval_loss")
        if "/" in self.output_name and not self.push_to_hub:
            raise at_field("output_name", f"{self.output_name!r} has a '/', which requires push_to_hub")
        if self.use_4bit and self.use_8bit:
            raise at_field("use_4bit", "is mutually exclusive with use_8bit; set one of them to false")
        if self.use_dora and self.use_lora and self.use_8bit:
            raise at_field("use_dora", "does not support 8-bit weights; set use_4bit instead of use_8bit")
        if self.weight_bits and not self.use_lora:
            bits = self.weight_bits
            raise at_field(
                "use_lora",
                f"false trains all weights, which {bits}-bit weights do not support: set use_{bits}bit to false",
            )
        return self

    @property
    def is_shardable(self) -> bool:
        """Whether a run on several GPUs can shard its model, which must be frozen and not quantized."""
        return self.use_lora and self.weight_bits is None

    @property
    def merges(self) -> bool:
        """Whether the run uploads merged weights rather than the adapter alone."""
        return self.use_lora and self.push_to_hub and self.merge_lora_before_upload

    def without_secrets(self) -> TrainingConfig:
        """Return the configuration without its tokens."""
        return self.model_copy(update=dict.fromkeys(SECRET_FIELDS))

    def secrets(self) -> dict[str, str]:
        """Return the tokens in the configuration, by field name."""
        tokens = {name: getattr(self, name) for name in SECRET_FIELDS}
        return {name: value.get_secret_value() for name, value in tokens.items() if value}
