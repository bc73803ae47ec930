"""TrainingConfig: all settings of a run with ranges, defaults and help (as a table: docs/settings-of-a-run.md)."""

from __future__ import annotations

import math
import re
from typing import Any, Literal, Self, get_args

from pydantic import Field, field_validator, model_validator

from merlina.domain.adapter_targets import ALL_LINEAR
from merlina.schemas.base import RequestModel, Token
from merlina.schemas.datasets.config import AnswersNeeded, DatasetConfig, answers_needed
from merlina.schemas.datasets.config import TrainingMode as TrainingMode
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
# A frozen model that takes more than this fraction of a GPU's free memory is sharded over the GPUs of the run.
_WHOLE_MODEL_FRACTION = 0.5
MAX_TEXT_TOKENS = 1_048_576
MAX_LABEL_WEIGHT = 1000
OUTPUT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}(/[A-Za-z0-9][A-Za-z0-9._-]{0,95})?")
_DEFAULT_TARGETS = ["up_proj", "down_proj", "gate_proj", "k_proj", "q_proj", "v_proj", "o_proj"]


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


class TrainingConfig(RequestModel):
    """Configuration of one run. `base_model`, `output_name` and `dataset` are required; the rest has defaults."""

    base_model: str = Field(
        min_length=1, max_length=4096, description="Model to train: Hub id, folder or `.gguf` file on the server."
    )
    output_name: str = Field(
        description="Name of the finished model and of its folder below MODELS_DIR. `org/name` needs push_to_hub "
        "and also names the Hub repository.",
        json_schema_extra={"pattern": f"^{OUTPUT_NAME.pattern}$"},
    )
    dataset: DatasetConfig

    training_mode: TrainingMode = Field(
        default="orpo",
        description="Training method. dpo, ipo and kto use the initial model as the reference; sft learns from the "
        "chosen answers alone.",
    )
    beta: float = Field(
        default=0.1,
        gt=0,
        le=10,
        description="orpo: weight of the odds-ratio loss (lambda in the paper). Other methods: scale of the "
        "rewards; lower values let the model move further from its reference. Not used by sft.",
    )
    simpo_gamma: float = Field(
        default=0.5, ge=0, le=10, description="simpo: target reward margin of the chosen over the rejected answer."
    )

    desirable_weight: float = Field(
        default=1.0,
        gt=0,
        le=MAX_LABEL_WEIGHT,
        description="kto: weight of the loss of chosen answers and of those labeled true.",
    )
    undesirable_weight: float = Field(
        default=1.0,
        gt=0,
        le=MAX_LABEL_WEIGHT,
        description="kto: weight of the loss of rejected answers and of those labeled false. Raise it if there are "
        "many more answers labeled true.",
    )

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

    learning_rate: float = Field(
        default=5e-6,
        gt=0,
        le=1,
        description="Peak learning rate, the hyperparameter with the greatest effect. Adapters on small models "
        "tolerate 5e-5 to 5e-4; lower it if the loss diverges.",
    )
    num_epochs: float = Field(
        default=2,
        gt=0,
        le=1000,
        description="Number of epochs; may be a fraction. More than 3 often lead to overfitting.",
    )
    max_steps: int | None = Field(
        default=None,
        ge=1,
        description="Number of optimizer steps; overrides num_epochs. Useful for a short first run.",
    )
    batch_size: int = Field(
        default=1,
        ge=1,
        le=1024,
        description="Pairs per optimizer step = batch_size × gradient_accumulation_steps; only the product matters.",
    )
    gradient_accumulation_steps: int = Field(
        default=16,
        ge=1,
        le=4096,
        description="The other factor of the number of pairs per optimizer step; see batch_size. The micro-batch "
        "size is chosen automatically.",
    )
    max_length: int = Field(
        default=2048,
        ge=16,
        le=MAX_TEXT_TOKENS,
        description="Maximum length of a prompt with its answer, in tokens. Longer ones are truncated; shorter "
        "limits save memory.",
    )
    max_prompt_length: int = Field(
        default=1024,
        ge=8,
        le=MAX_TEXT_TOKENS,
        description="Prompt tokens kept when a pair exceeds max_length; must be smaller than max_length. Default: "
        "half of max_length.",
    )

    seed: int = Field(
        default=42, ge=0, le=2**32 - 1, description="Seed of the split, the row order, the adapters and dropout."
    )
    max_grad_norm: float = Field(
        default=0.3, ge=0, le=1e6, description="Clip the global gradient norm to this value; 0 disables clipping."
    )
    warmup_ratio: float = Field(
        default=0.05,
        ge=0,
        lt=1,
        description="Fraction of the optimizer steps during which the learning rate rises linearly to its peak; 0 "
        "disables the warm-up.",
    )
    eval_steps: float = Field(
        default=0.2,
        ge=0,
        le=1e9,
        description="Evaluate every N steps (≥ 1) or every fraction of the run (< 1); 0: never.",
    )
    early_stopping_patience: int | None = Field(
        default=None,
        ge=1,
        le=1000,
        description="End the run after this many consecutive evaluations without an improvement of "
        "load_best_at_end, or of eval_loss if that is not set.",
    )
    load_best_at_end: Literal["eval_loss", "eval_reward_margin"] | None = Field(
        default=None,
        description="Save the model with the best value of this metric (lowest eval_loss, highest "
        "eval_reward_margin) instead of the last one.",
    )
    save_steps: float = Field(
        default=0.1,
        ge=0,
        le=1e9,
        description="Save a checkpoint every N steps (≥ 1) or every fraction of the run (< 1); 0: only when "
        "stopped or paused.",
    )
    shuffle_dataset: bool = Field(
        default=True, description="Shuffle the training rows in each epoch; false keeps the order of the data set."
    )
    weight_decay: float = Field(
        default=0.01,
        ge=0,
        le=10,
        description="Weight decay coefficient: each step shrinks the trained weights by the learning rate times "
        "this value; 0 disables it.",
    )
    lr_scheduler_type: SchedulerType = Field(
        default="cosine", description="Learning-rate schedule; constant and constant_with_warmup are equivalent."
    )
    lr_scheduler_cycles: int = Field(
        default=2,
        ge=2,
        le=1000,
        description="cosine_with_restarts: number of cycles, each of which decays from the peak learning rate "
        "towards 0.",
    )
    lr_scheduler_power: float = Field(
        default=2.0, gt=0, le=10, description="polynomial: exponent of the decay; 1 is linear, 2 faster at first."
    )
    gradient_checkpointing: bool = Field(
        default=False, description="Recompute activations in the backward pass: less memory, about a third slower."
    )
    logging_steps: int = Field(
        default=1, ge=1, le=1_000_000, description="Record training metrics every N optimizer steps."
    )

    optimizer_type: OptimizerType = Field(
        default="paged_adamw_8bit",
        description="Optimizer. `8bit`: 8-bit state; `paged`: state moves to RAM when GPU memory runs out. On a "
        "CPU, use adamw_torch.",
    )
    adam_beta1: float = Field(
        default=0.9, ge=0, lt=1, description="Decay rate of the mean gradient: the first beta of Adam and Lion."
    )
    adam_beta2: float = Field(
        default=0.999, ge=0, lt=1, description="Decay rate of the mean squared gradient: second beta of Adam and Lion."
    )
    adam_epsilon: float = Field(
        default=1e-8, gt=0, le=1, description="Constant in the denominator of Adam's update, for numerical stability."
    )

    use_4bit: bool = Field(
        default=True,
        description="Hold the frozen weights in 4 bits (NF4), a quarter of the memory of 16 bits. Requires use_lora.",
    )
    use_8bit: bool = Field(
        default=False,
        description="Hold the frozen weights in 8 bits, half of the memory of 16 bits. Mutually exclusive with "
        "use_4bit; turns its default off.",
    )
    dtype: Dtype = Field(
        default="auto",
        description="Precision of the model. auto: bfloat16 on a GPU, or float16 if the GPU does not support bfloat16; "
        "float32 on a CPU.",
    )
    attn_implementation: AttentionImplementation = Field(
        default="auto", description="Attention kernel. auto: the fastest one that the machine and the model support."
    )
    gpu_ids: list[int] | None = Field(
        default=None, description="GPU indices; several share the pairs of each step. null: the server chooses one."
    )

    push_to_hub: bool = Field(default=False, description="Upload the finished model to the Hugging Face Hub.")
    merge_lora_before_upload: bool = Field(
        default=True, description="Upload the base model merged with the adapter; false uploads the adapter alone."
    )
    merge_dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto",
        description="Precision of the merged weights. auto: that of the run, or bfloat16 after a run in 4 or 8 "
        "bits. Only float32 preserves very small updates.",
    )
    hf_hub_private: bool = Field(default=True, description="Create the Hub repository as private.")
    hf_token: Token | None = Field(
        default=None,
        description="Hugging Face token for gated or private repositories and for uploads. Never returned; deleted "
        "when the run no longer needs it.",
    )

    use_wandb: bool = Field(default=False, description="Log the configuration and the metrics to Weights & Biases.")
    wandb_key: Token | None = Field(
        default=None, description="Weights & Biases API key. Never returned; deleted when the run no longer needs it."
    )
    wandb_project: str | None = Field(
        default=None, max_length=128, description="Weights & Biases project. Default: merlina-training."
    )
    wandb_run_name: str | None = Field(
        default=None, max_length=256, description="Name of the run in Weights & Biases. Default: the job id."
    )
    wandb_tags: list[str] | None = Field(
        default=None, max_length=64, description="Tags of the run in Weights & Biases."
    )
    wandb_notes: str | None = Field(
        default=None, max_length=10_000, description="Notes on the run in Weights & Biases."
    )

    @field_validator("output_name")
    @classmethod
    def _is_a_name(cls, value: str) -> str:
        if not OUTPUT_NAME.fullmatch(value) or value.endswith("."):
            raise ValueError(
                f"{value[:100]!r} is not a valid name: use letters, digits, '.', '_' and '-', a letter or digit first"
            )
        return value

    @field_validator("target_modules", mode="before")
    @classmethod
    def _may_be_all_linear(cls, value: Any) -> Any:
        if value == ALL_LINEAR:
            return [value]
        if not isinstance(value, (list, tuple, set)):
            given = f", not {value[:60]!r}" if isinstance(value, str) else ""
            raise ValueError(f'must be a list of layer names, or "{ALL_LINEAR}"{given}')
        return value

    @field_validator("target_modules")
    @classmethod
    def _are_layer_names(cls, value: list[str]) -> list[str]:
        if any(not name.strip() for name in value):
            raise ValueError("contains an empty layer name")
        return value

    @field_validator("gpu_ids")
    @classmethod
    def _are_indices(cls, value: list[int] | None) -> list[int] | None:
        if value is None:
            return None
        if not value or len(set(value)) != len(value) or min(value) < 0:
            raise ValueError(f"{value} must be a list of distinct GPU indices (0 or higher), or null")
        return value

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
        if self.weight_bits and not self.use_lora:
            bits = self.weight_bits
            raise at_field(
                "use_lora",
                f"false trains all weights, which {bits}-bit weights do not support: set use_{bits}bit to false",
            )
        return self

    @property
    def weight_bits(self) -> WeightBits | None:
        """Bits per quantized frozen weight; None without quantization."""
        return 4 if self.use_4bit else 8 if self.use_8bit else None

    def shards_weights(self, processes: int, weight_bytes: float, free_bytes: float) -> bool:
        """Return whether a run on several GPUs, each with `free_bytes` of free memory, shards its frozen model."""
        is_frozen = self.use_lora and self.weight_bits is None
        return processes > 1 and is_frozen and weight_bytes > _WHOLE_MODEL_FRACTION * free_bytes

    @property
    def merges(self) -> bool:
        """Whether the run uploads merged weights rather than the adapter alone."""
        return self.use_lora and self.push_to_hub and self.merge_lora_before_upload

    def merging_bytes(self, weight_bytes: float) -> float:
        """Return the memory for merging, in bytes, if the merged model's weights take `weight_bytes`."""
        # GGUF weights exist twice while they are dequantized; others are loaded one by one.
        return weight_bytes * (1.5 if self.base_model.lower().endswith(".gguf") else 1.1)

    @property
    def answers_needed(self) -> AnswersNeeded:
        """The answers that the method needs of each row."""
        return answers_needed(self.training_mode)

    @property
    def pairs_per_step(self) -> int:
        """Number of pairs in one optimizer step."""
        return self.batch_size * self.gradient_accumulation_steps

    def without_secrets(self) -> TrainingConfig:
        """Return the configuration without its tokens."""
        return self.model_copy(update=dict.fromkeys(SECRET_FIELDS))

    def secrets(self) -> dict[str, str]:
        """Return the tokens in the configuration, by field name."""
        tokens = {name: getattr(self, name) for name in SECRET_FIELDS}
        return {name: value.get_secret_value() for name, value in tokens.items() if value}
