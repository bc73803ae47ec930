"""The whole of what a run can be told: TrainingConfig (API document, "TrainingConfig")."""

from __future__ import annotations

import math
import re
from typing import Any, Literal, Self, get_args

from pydantic import Field, field_validator, model_validator

from merlina.domain.targets import ALL_LINEAR
from merlina.schemas.base import RequestModel, Token
from merlina.schemas.datasets import DatasetConfig
from merlina.schemas.datasets import TrainingMode as TrainingMode
from merlina.schemas.parsing.validation_errors import at_field

OptimizerType = Literal[
    "adamw_torch",
    "adamw_torch_fused",
    "adamw_8bit",
    "paged_adamw_8bit",
    "paged_adamw_32bit",
    "lion_8bit",
    "paged_lion_8bit",
    "adafactor",
    "sgd",
]
SchedulerType = Literal["cosine", "linear", "constant", "constant_with_warmup", "cosine_with_restarts", "polynomial"]
AttentionImplementation = Literal["auto", "eager", "sdpa", "flash_attention_2"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
WeightBits = Literal[4, 8]

SECRET_FIELDS = ("hf_token", "wandb_key")
KEPT_CHECKPOINTS = 2
# Positions of one forward pass: enough for products to run at the device's full rate, and no more memory than that.
PACK_POSITIONS = {"cpu": 1024, "cuda": 8192}


def smaller_budget(positions: int) -> int:
    """Return the next smaller number of positions of a forward pass, where one does not fit into a GPU's memory."""
    return positions * 3 // 4


# Bytes for each trained weight that the optimizer keeps beside it.
OPTIMIZER_BYTES: dict[OptimizerType, float] = {
    "adamw_torch": 8.0,
    "adamw_torch_fused": 8.0,
    "adamw_8bit": 2.0,
    "paged_adamw_8bit": 2.0,
    "paged_adamw_32bit": 8.0,
    "lion_8bit": 1.0,
    "paged_lion_8bit": 1.0,
    "adafactor": 0.1,
    "sgd": 0.0,
}
# Of a GPU's free memory: a frozen model that takes more of it is spread over the run's GPUs.
_WHOLE_MODEL_SHARE = 0.5
LONGEST_TEXT = 1_048_576
OUTPUT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}(/[A-Za-z0-9][A-Za-z0-9._-]{0,95})?")
_DEFAULT_TARGETS = ["up_proj", "down_proj", "gate_proj", "k_proj", "q_proj", "v_proj", "o_proj"]


def default_prompt_length(max_length: int) -> int:
    """Return `max_prompt_length` where it is not set: half of `max_length`, in tokens."""
    return max_length // 2


def in_present_form(given: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration, or a part of one, in the form that clients send now.

    Older ones have `training_mode` inside `dataset` and an empty `hf_namespace`.
    """
    config = {name: value for name, value in given.items() if (name, value) != ("hf_namespace", None)}
    dataset = config.get("dataset")
    mode = dataset.get("training_mode") if isinstance(dataset, dict) else getattr(dataset, "training_mode", None)
    if mode in get_args(TrainingMode):
        config = {"training_mode": mode, **config}
    # One that is unknown, or contradicts the run's, stays to be refused.
    agrees = mode is None or (mode == config.get("training_mode") and mode in get_args(TrainingMode))
    if isinstance(dataset, dict) and agrees:
        config["dataset"] = {name: value for name, value in dataset.items() if name != "training_mode"}
    return config


class TrainingConfig(RequestModel):
    """One training run. `base_model`, `output_name` and `dataset` are required; the rest has defaults."""

    base_model: str = Field(
        min_length=1, max_length=4096, description="Hub id, local folder or `.gguf` file of the model to train."
    )
    output_name: str = Field(
        description="Folder that the finished model gets below MODELS_DIR; `org/name` where it is pushed to the Hub.",
        json_schema_extra={"pattern": f"^{OUTPUT_NAME.pattern}$"},
    )
    dataset: DatasetConfig

    training_mode: TrainingMode = Field(
        default="orpo", description="The method. dpo, ipo and kto hold the model against what it was at the beginning."
    )
    beta: float = Field(
        default=0.1,
        gt=0,
        le=10,
        description="Weight of the odds ratio in orpo (lambda in the paper), scale of rewards in the others.",
    )
    simpo_gamma: float = Field(
        default=0.5, ge=0, le=10, description="By how much the chosen answer's reward is to lead in simpo."
    )

    use_lora: bool = Field(
        default=True, description="Train low-rank adapters on a frozen model, rather than every weight."
    )
    lora_r: int = Field(default=64, ge=1, le=1024, description="Rank of the adapters: how much they can hold.")
    lora_alpha: int = Field(
        default=32, ge=1, le=4096, description="Adapters act with a strength of lora_alpha / lora_r."
    )
    lora_dropout: float = Field(
        default=0.05, ge=0, lt=1, description="Share of the adapters' input that is dropped at random."
    )
    disable_dropout: bool = Field(
        default=True,
        description="Disable the base model's own dropout during training, as TRL does. lora_dropout is not affected.",
    )
    target_modules: list[str] = Field(
        default_factory=lambda: list(_DEFAULT_TARGETS),
        min_length=1,
        description="Names of the layers that get an adapter; `all-linear` for all of them, `experts` for the routed "
        "experts of a mixture-of-experts model.",
    )

    learning_rate: float = Field(
        default=5e-6, gt=0, le=1, description="Peak learning rate, and the setting with the greatest effect."
    )
    num_epochs: float = Field(
        default=2, gt=0, le=1000, description="Passes over the training rows; parts of one are allowed."
    )
    max_steps: int | None = Field(
        default=None, ge=1, description="Stop after so many optimizer steps, whatever the number of epochs."
    )
    batch_size: int = Field(
        default=1,
        ge=1,
        le=1024,
        description="Pairs that, times gradient_accumulation_steps, make an optimizer step; only the product counts.",
    )
    gradient_accumulation_steps: int = Field(
        default=16,
        ge=1,
        le=4096,
        description="Times batch_size: pairs of an optimizer step. How they are cut into passes is found by itself.",
    )
    max_length: int = Field(
        default=2048,
        ge=16,
        le=LONGEST_TEXT,
        description="Longest prompt with its answer, in tokens; longer ones are cut.",
    )
    max_prompt_length: int = Field(
        default=1024,
        ge=8,
        le=LONGEST_TEXT,
        description="Prompt tokens kept when a pair exceeds max_length; below max_length, and half of it unless set.",
    )

    seed: int = Field(
        default=42, ge=0, le=2**32 - 1, description="Seed of the held-out rows, their order, the adapters and dropout."
    )
    max_grad_norm: float = Field(
        default=0.3, ge=0, le=1e6, description="Gradients longer than this are cut to it; 0 cuts none."
    )
    warmup_ratio: float = Field(
        default=0.05,
        ge=0,
        lt=1,
        description="Share of the steps in which the learning rate rises to its peak; step k of w has k/w of it.",
    )
    eval_steps: float = Field(
        default=0.2,
        ge=0,
        le=1e9,
        description="When to evaluate: 0 never, below 1 after each such share of the steps, from 1 after so many.",
    )
    early_stopping_patience: int | None = Field(
        default=None, ge=1, le=1000, description="End the run after so many evaluations in a row without a better one."
    )
    load_best_at_end: Literal["eval_loss", "eval_reward_margin"] | None = Field(
        default=None, description="Save the model that was best by this figure, rather than the last one."
    )
    save_steps: float = Field(
        default=0.1,
        ge=0,
        le=1e9,
        description="When to write checkpoints: 0 only on a stop, below 1 after each such share, from 1 after so many.",
    )
    shuffle_dataset: bool = Field(
        default=True, description="Draw the rows in random order, rather than as they stand in the data."
    )
    weight_decay: float = Field(
        default=0.01, ge=0, le=10, description="By how much weights are drawn towards zero (decoupled weight decay)."
    )
    lr_scheduler_type: SchedulerType = Field(
        default="cosine",
        description="Schedule of the learning rate after the warm-up. constant and constant_with_warmup are the same.",
    )
    lr_scheduler_cycles: int = Field(
        default=2, ge=2, le=1000, description="Cycles of cosine_with_restarts; each falls from the peak rate towards 0."
    )
    lr_scheduler_power: float = Field(
        default=2.0,
        gt=0,
        le=10,
        description="Exponent of polynomial: 1 falls linearly, higher values fall faster at first.",
    )
    gradient_checkpointing: bool = Field(
        default=False,
        description="Compute activations anew instead of keeping them: less memory, about a third slower.",
    )
    logging_steps: int = Field(
        default=1, ge=1, le=1_000_000, description="Optimizer steps between two rows of figures."
    )

    optimizer_type: OptimizerType = Field(
        default="paged_adamw_8bit", description="The optimizer; those with 8bit and paged in their names save memory."
    )
    adam_beta1: float = Field(default=0.9, ge=0, lt=1, description="Decay of the gradient's running mean.")
    adam_beta2: float = Field(default=0.999, ge=0, lt=1, description="Decay of the squared gradient's running mean.")
    adam_epsilon: float = Field(default=1e-8, gt=0, le=1, description="Added to the denominator for stability.")

    use_4bit: bool = Field(
        default=True, description="Hold the frozen weights in 4 bits (NF4), for a quarter of the memory."
    )
    use_8bit: bool = Field(
        default=False,
        description="Hold the frozen weights in 8 bits, for half of the memory; 4 bits are then off unless asked for.",
    )
    dtype: Dtype = Field(
        default="auto", description="Precision of the model; auto is bfloat16 on a GPU and float32 on a CPU."
    )
    attn_implementation: AttentionImplementation = Field(
        default="auto", description="Attention kernel; auto takes the best that is here."
    )
    gpu_ids: list[int] | None = Field(
        default=None, description="Indices of the GPUs to use; left out, the server chooses."
    )

    push_to_hub: bool = Field(default=False, description="Upload the finished model to the Hugging Face Hub.")
    merge_lora_before_upload: bool = Field(default=True, description="Upload whole weights rather than the adapter.")
    merge_dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto",
        description="Precision of the merged weights that are uploaded. auto is that of the run, and bfloat16 after "
        "one in 4 or 8 bits. Small updates survive only in float32.",
    )
    hf_hub_private: bool = Field(default=True, description="Make the uploaded repository private.")
    hf_token: Token | None = Field(
        default=None, description="Hugging Face token; it is never stored with the job nor shown."
    )

    use_wandb: bool = Field(default=False, description="Send settings and figures to Weights & Biases.")
    wandb_key: Token | None = Field(
        default=None, description="Weights & Biases key; it is never stored with the job nor shown."
    )
    wandb_project: str | None = Field(default=None, max_length=128, description="Project in Weights & Biases.")
    wandb_run_name: str | None = Field(default=None, max_length=256, description="What the run is called there.")
    wandb_tags: list[str] | None = Field(default=None, max_length=64, description="Tags that the run gets there.")
    wandb_notes: str | None = Field(default=None, max_length=10_000, description="Notes that the run gets there.")

    @field_validator("output_name")
    @classmethod
    def _is_a_name(cls, value: str) -> str:
        if not OUTPUT_NAME.fullmatch(value) or value.endswith("."):
            raise ValueError(
                f"{value[:100]!r} is no usable name: use letters, digits, '.', '_' and '-', a letter or digit first"
            )
        return value

    @field_validator("target_modules", mode="before")
    @classmethod
    def _may_be_all_linear(cls, value: Any) -> Any:
        if value == ALL_LINEAR:
            return [value]
        if not isinstance(value, (list, tuple, set)):
            given = f", not {value[:60]!r}" if isinstance(value, str) else ""
            raise ValueError(f'must be a list of names of layers, or "{ALL_LINEAR}"{given}')
        return value

    @field_validator("target_modules")
    @classmethod
    def _are_layer_names(cls, value: list[str]) -> list[str]:
        if any(not name.strip() for name in value):
            raise ValueError("has an empty layer name")
        return value

    @field_validator("gpu_ids")
    @classmethod
    def _are_indices(cls, value: list[int] | None) -> list[int] | None:
        if value is None:
            return None
        if not value or len(set(value)) != len(value) or min(value) < 0:
            raise ValueError(f"{value} must be one or more different indices from 0 on, or null")
        return value

    @model_validator(mode="before")
    @classmethod
    def _accept_older_forms(cls, given: Any) -> Any:
        return in_present_form(given) if isinstance(given, dict) else given

    @model_validator(mode="before")
    @classmethod
    def _follow_given_fields(cls, given: Any) -> Any:
        """Derive what is not given from related fields that are: their defaults would contradict them."""
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
    def _fits_together(self) -> Self:
        if self.max_prompt_length >= self.max_length:
            raise at_field(
                "max_prompt_length",
                f"{self.max_prompt_length} must be below max_length ({self.max_length}), so that there is room for an "
                "answer",
            )
        if self.dataset.training_mode not in (None, self.training_mode):
            raise at_field(
                "dataset.training_mode",
                f"{self.dataset.training_mode!r} differs from training_mode {self.training_mode!r}; leave it out",
            )
        wishes = {name: getattr(self, name) for name in ("early_stopping_patience", "load_best_at_end")}
        for name, wish in wishes.items():
            if wish is not None and (self.eval_steps == 0 or self.dataset.test_size == 0):
                raise at_field(name, "needs evaluations: eval_steps and dataset.test_size must be above 0")
        if self.training_mode == "sft" and self.load_best_at_end == "eval_reward_margin":
            raise at_field("load_best_at_end", "sft has no eval_reward_margin; use eval_loss")
        if "/" in self.output_name and not self.push_to_hub:
            raise at_field("output_name", f"{self.output_name!r} has a '/', which needs push_to_hub")
        if self.use_4bit and self.use_8bit:
            raise at_field("use_4bit", "can't be true beside use_8bit: weights are held one way")
        if self.weight_bits and not self.use_lora:
            bits = self.weight_bits
            raise at_field(
                "use_lora", f"false trains every weight, which {bits}-bit weights can't: set use_{bits}bit to false too"
            )
        return self

    @property
    def weight_bits(self) -> WeightBits | None:
        """Of the frozen weights, where they are held in fewer than the dtype has."""
        return 4 if self.use_4bit else 8 if self.use_8bit else None

    def spreads_weights(self, processes: int, weight_bytes: float, free_bytes: float) -> bool:
        """Whether a run in several processes holds its frozen model in parts, each with so much free memory."""
        is_frozen = self.use_lora and self.weight_bits is None
        return processes > 1 and is_frozen and weight_bytes > _WHOLE_MODEL_SHARE * free_bytes

    @property
    def merges(self) -> bool:
        """Whether the adapter is to be uploaded as whole weights."""
        return self.use_lora and self.push_to_hub and self.merge_lora_before_upload

    def merging_bytes(self, weight_bytes: float) -> float:
        """Memory to load the base model for merging, whose weights take `weight_bytes` as they are merged and saved."""
        # A GGUF's weights are there twice while they are unpacked, others one by one.
        return weight_bytes * (1.5 if self.base_model.lower().endswith(".gguf") else 1.1)

    @property
    def needs_rejected(self) -> bool:
        """Whether the method compares answers, rather than learning from examples."""
        return self.training_mode != "sft"

    @property
    def pairs_per_step(self) -> int:
        """Preference pairs in one optimizer step."""
        return self.batch_size * self.gradient_accumulation_steps

    def without_secrets(self) -> TrainingConfig:
        """The same configuration with every token left out."""
        return self.model_copy(update=dict.fromkeys(SECRET_FIELDS))

    def secrets(self) -> dict[str, str]:
        """The tokens it carries, by field name."""
        held = {name: getattr(self, name) for name in SECRET_FIELDS}
        return {name: value.get_secret_value() for name, value in held.items() if value}
