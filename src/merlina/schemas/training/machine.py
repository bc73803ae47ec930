"""Settings of precision, kernels and GPUs (see `TrainingConfig`)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from merlina.schemas.base import RequestModel

AttentionImplementation = Literal["auto", "eager", "sdpa", "flash_attention_2"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
WeightBits = Literal[4, 8]


class MachineFields(RequestModel):
    """Settings of precision, kernels and GPUs."""

    use_4bit: bool = Field(
        default=True,
        description="Quantize the frozen weights to 4 bits (NF4): a quarter of the memory of 16 bits. Requires "
        "use_lora.",
    )
    use_8bit: bool = Field(
        default=False,
        description="Quantize the frozen weights to 8 bits: half of the memory of 16 bits. Mutually exclusive with "
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

    @field_validator("gpu_ids")
    @classmethod
    def _are_indices(cls, value: list[int] | None) -> list[int] | None:
        if value is None:
            return None
        if not value or len(set(value)) != len(value) or min(value) < 0:
            raise ValueError(f"{value} must be a list of distinct GPU indices (0 or higher), or null")
        return value

    @property
    def weight_bits(self) -> WeightBits | None:
        """Bits per quantized frozen weight; None without quantization."""
        return 4 if self.use_4bit else 8 if self.use_8bit else None
