"""Settings of uploads to the Hugging Face Hub and of logging to Weights & Biases (see `TrainingConfig`)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from merlina.schemas.base import RequestModel, Token

SECRET_FIELDS = ("hf_token", "wandb_key")


class PublishingFields(RequestModel):
    """Settings of uploads to the Hugging Face Hub and of logging to Weights & Biases."""

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
