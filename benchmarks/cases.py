"""Training runs to compare: what is trained, on what model, and what a run measures.

All use LoRA of rank 16 on all seven projections, bfloat16, AdamW with a constant learning rate, and the pairs in their
order. `merlina_run` and `trl_run` carry them out, `contenders` in processes of their own.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

# A prompt and its two answers as token ids. For kto, one of the answers is empty.
Ids = tuple[list[int], list[int], list[int]]

BETA = 0.1
LORA = {"r": 16, "lora_alpha": 32}
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LEARNING_RATE = 1e-4
_LLAMA = {
    "vocab_size": 128_256, "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 16_384,
    "tie_word_embeddings": True,
}  # fmt: skip
# Llamas with random weights: the shapes of Llama 3.2 1B and Llama 3 8B, and one for a CPU.
SHAPES: dict[str, dict[str, Any]] = {
    "1b": {**_LLAMA, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16},
    "8b": {
        **_LLAMA, "hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32,
        "tie_word_embeddings": False,
    },
    "tiny": {
        **_LLAMA, "vocab_size": 1024, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2,
    },
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A training run. `model` is a folder or a key of `SHAPES`, `tokenizer` a folder, `ids` a file of `Ids`.

    `batch_size` is the number of pairs in a peer's forward pass, `positions` the largest number of positions in
    Merlina's. `warmup_steps` are not timed.
    """

    model: str
    tokenizer: str
    ids: str
    objective: str = "orpo"
    pairs_per_step: int = 8
    batch_size: int = 1
    warmup_steps: int = 1
    positions: int | None = None
    max_length: int = 1024
    bits: Literal[4, 8] | None = None
    checkpointing: bool = False
    dropout: float = 0.0


@dataclass
class Outcome:
    """What a run measured. `error` tells why a run failed; the other values are then zero or empty.

    Tokens are those without padding; a prompt counts with each answer that the objective uses, independent of how
    often it is computed, so that the work is equal. `peak_gb` (10^9 bytes) is that of torch's allocator on a GPU, and
    the largest resident set on a CPU; `reserved_gb` includes the allocator's unused blocks. `positions` are those of
    Merlina's largest pass.
    """

    tokens_per_second: float = 0.0
    peak_gb: float = 0.0
    reserved_gb: float = 0.0
    positions: int = 0
    losses: list[float] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    error: str | None = None


class Clock:
    """The times at which optimizer steps ended, in seconds."""

    def __init__(self) -> None:
        self.ticks: list[float] = []

    def tick(self) -> None:
        import torch

        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ticks.append(time.perf_counter())


def load_case_model(case: Case, folder: Path) -> Any:
    """Return the model of a case: loaded from its folder as in a run, or with random weights in bfloat16."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from merlina.training.device import training_device
    from merlina.training.models.loading import ModelSpec, load_model

    if case.model not in SHAPES:
        return load_model(ModelSpec(case.model, "bfloat16", case.bits, "auto", folder))
    torch.manual_seed(0)
    shape = SHAPES[case.model]
    config = LlamaConfig(
        **shape, head_dim=shape["hidden_size"] // shape["num_attention_heads"], pad_token_id=0, bos_token_id=1,
        eos_token_id=2, rope_parameters={"rope_type": "default", "rope_theta": 500_000.0}, dtype="bfloat16",
    )  # fmt: skip
    with torch.device(training_device()):
        torch.set_default_dtype(torch.bfloat16)
        model = LlamaForCausalLM(config)
        torch.set_default_dtype(torch.float32)
    model.config.use_cache = False
    return model
