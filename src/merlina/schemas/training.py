"""The whole of what a run can be told: TrainingConfig (API document, "TrainingConfig")."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator
from typing_extensions import Self

from merlina.schemas.base import Request, Token
from merlina.schemas.datasets import DatasetConfig

TrainingMode = Literal["orpo", "dpo", "simpo", "cpo", "ipo", "kto", "sft"]
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
# Of a GPU's free memory: a frozen model that takes more of it is spread over the run's GPUs.
_WHOLE_MODEL_SHARE = 0.5
OUTPUT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}(/[A-Za-z0-9][A-Za-z0-9._-]{0,95})?")
_DEFAULT_TARGETS = ["up_proj", "down_proj", "gate_proj", "k_proj", "q_proj", "v_proj", "o_proj"]


class TrainingConfig(Request):
    """One training run. `base_model`, `output_name` and `dataset` are required; the rest has defaults."""

    base_model: str = Field(min_length=1, max_length=4096, description="Hub id, local folder, or `.gguf` file")
    output_name: str = Field(
        description="folder of the finished model below MODELS_DIR; `org/name` only with push_to_hub",
        json_schema_extra={"pattern": f"^{OUTPUT_NAME.pattern}$"},
    )
    dataset: DatasetConfig

    training_mode: TrainingMode = Field(
        "orpo", description="the objective; dpo, ipo and kto hold the model against what it was at the beginning"
    )
    beta: float = Field(
        0.1, gt=0, le=10, description="orpo: weight of the odds ratio (lambda in the paper); else the scale of rewards"
    )
    simpo_gamma: float = Field(0.5, ge=0, le=10, description="simpo: by how much the chosen answer's reward is to lead")

    use_lora: bool = Field(True, description="train low-rank adapters on a frozen model; false trains every weight")
    lora_r: int = Field(64, ge=1, le=1024, description="rank of the adapters")
    lora_alpha: int = Field(32, ge=1, le=4096, description="adapters are scaled by lora_alpha / lora_r")
    lora_dropout: float = Field(0.05, ge=0, lt=1, description="dropout on the adapters' input, a probability")
    target_modules: list[str] = Field(
        default_factory=lambda: list(_DEFAULT_TARGETS),
        min_length=1,
        description="names of the layers that get an adapter",
    )

    learning_rate: float = Field(5e-6, gt=0, le=1, description="peak learning rate, per optimizer step")
    num_epochs: float = Field(2, gt=0, le=1000, description="passes over the training rows; parts of one are allowed")
    max_steps: int | None = Field(
        None, ge=1, description="stop after so many optimizer steps, whatever num_epochs says"
    )
    batch_size: int = Field(
        1, ge=1, le=1024, description="preference pairs; times gradient_accumulation_steps, those of an optimizer step"
    )
    gradient_accumulation_steps: int = Field(
        16, ge=1, le=4096, description="see batch_size; how a step is cut into forward passes is found by itself"
    )
    max_length: int = Field(2048, ge=16, le=1_048_576, description="longest prompt with answer, in tokens")
    max_prompt_length: int = Field(1024, ge=8, le=1_048_576, description="longest prompt, in tokens; below max_length")

    seed: int = Field(42, ge=0, le=2**32 - 1, description="of the split, the order, the adapters and the dropout")
    max_grad_norm: float = Field(
        0.3, ge=0, le=1e6, description="gradients are clipped to this L2 norm; 0 clips nothing"
    )
    warmup_ratio: float = Field(0.05, ge=0, lt=1, description="share of the steps in which the learning rate climbs")
    eval_steps: float = Field(
        0.2, ge=0, le=1e9, description="evaluate: 0 never, below 1 every such share of the steps, from 1 every so many"
    )
    early_stopping_patience: int | None = Field(
        None, ge=1, le=1000, description="end the run after so many evaluations without a better one; null: never"
    )
    load_best_at_end: Literal["eval_loss", "eval_reward_margin"] | None = Field(
        None, description="save the model of the best evaluation by this figure, not the last one; null: the last"
    )
    save_steps: float = Field(
        0.1, ge=0, le=1e9, description="checkpoint: 0 only on a stop, below 1 every such share, from 1 every so many"
    )
    shuffle_dataset: bool = Field(True, description="draw the rows in random order; false keeps the file's order")
    weight_decay: float = Field(0.01, ge=0, le=10, description="decoupled weight decay")
    lr_scheduler_type: SchedulerType = Field("cosine", description="course of the learning rate after the warm-up")
    gradient_checkpointing: bool = Field(False, description="recompute activations: less memory, about a third slower")
    logging_steps: int = Field(1, ge=1, le=1_000_000, description="optimizer steps between two metric rows")

    optimizer_type: OptimizerType = Field("paged_adamw_8bit", description="the optimizer; 8bit and paged save memory")
    adam_beta1: float = Field(0.9, ge=0, lt=1, description="decay of the gradient's running mean")
    adam_beta2: float = Field(0.999, ge=0, lt=1, description="decay of the squared gradient's running mean")
    adam_epsilon: float = Field(1e-8, gt=0, le=1, description="added to the denominator for stability")

    use_4bit: bool = Field(True, description="hold the frozen weights as 4-bit NF4 (bitsandbytes)")
    use_8bit: bool = Field(
        False, description="hold them as 8-bit integers instead (bitsandbytes); use_4bit is then false unless given"
    )
    dtype: Dtype = Field("auto", description="precision of the model: auto is bfloat16 on a GPU, float32 on a CPU")
    attn_implementation: AttentionImplementation = Field(
        "auto", description="attention kernel; auto takes the best here"
    )
    gpu_ids: list[int] | None = Field(None, description="GPU indices to use; null lets the server choose")

    push_to_hub: bool = Field(False, description="upload the finished model to the Hugging Face Hub")
    merge_lora_before_upload: bool = Field(True, description="upload whole weights rather than the adapter")
    hf_hub_private: bool = Field(True, description="make the uploaded repository private")
    hf_token: Token | None = Field(None, description="Hugging Face token; never stored with the job, never shown")

    use_wandb: bool = Field(False, description="send metrics to Weights & Biases")
    wandb_key: Token | None = Field(None, description="Weights & Biases key; never stored with the job, never shown")
    wandb_project: str | None = Field(None, max_length=128, description="project to log to")
    wandb_run_name: str | None = Field(None, max_length=256, description="the run's name there")
    wandb_tags: list[str] | None = Field(None, max_length=64, description="the run's tags there")
    wandb_notes: str | None = Field(None, max_length=10_000, description="the run's notes there")

    @field_validator("output_name")
    @classmethod
    def _is_a_name(cls, value: str) -> str:
        if not OUTPUT_NAME.fullmatch(value) or value.endswith("."):
            raise ValueError(
                f"{value[:100]!r} is no usable name: use letters, digits, '.', '_' and '-', a letter or digit first"
            )
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
    def _prefers_what_is_said(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("use_8bit") is True and "use_4bit" not in given:
            return {**given, "use_4bit": False}
        return given

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.max_prompt_length >= self.max_length:
            raise ValueError(
                f"max_prompt_length ({self.max_prompt_length}) must be below max_length ({self.max_length}), "
                "so that there is room for an answer"
            )
        wishes = {name: getattr(self, name) for name in ("early_stopping_patience", "load_best_at_end")}
        for name, wish in wishes.items():
            if wish is not None and (self.eval_steps == 0 or self.dataset.test_size == 0):
                raise ValueError(f"{name} needs evaluations: eval_steps and dataset.test_size must be above 0")
        if self.training_mode == "sft" and self.load_best_at_end == "eval_reward_margin":
            raise ValueError("load_best_at_end: sft has no eval_reward_margin; use eval_loss")
        if "/" in self.output_name and not self.push_to_hub:
            raise ValueError(f"output_name {self.output_name!r}: a name with '/' needs push_to_hub")
        if self.use_4bit and self.use_8bit:
            raise ValueError("use_4bit and use_8bit can't both be true: weights are held one way")
        if self.weight_bits and not self.use_lora:
            bits = self.weight_bits
            raise ValueError(
                f"use_lora false trains every weight, which {bits}-bit weights can't: set use_{bits}bit to false too"
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
