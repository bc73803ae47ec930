"""Settings of optimizer steps, evaluations, checkpoints and the optimizer (see `TrainingConfig`)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from merlina.schemas.base import RequestModel

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
MAX_TEXT_TOKENS = 1_048_576


class StepFields(RequestModel):
    """Settings of optimizer steps, evaluations, checkpoints and the optimizer."""

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

    @property
    def pairs_per_step(self) -> int:
        """Number of pairs in one optimizer step."""
        return self.batch_size * self.gradient_accumulation_steps
