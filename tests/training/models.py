"""Small random models of many families, with random adapters."""

from __future__ import annotations

from typing import Any

import torch

from merlina.training.engine.packing import PackedExample
from merlina.training.evaluation_sets import HELD_OUT, EvaluationSet
from merlina.training.models.tokens import TokenPair

TARGETS = ["up_proj", "down_proj", "gate_proj", "k_proj", "q_proj", "v_proj", "o_proj"]

# Shapes that differ: short and long prompts, either answer the longer one, one-token answers.
PAIRS = [
    TokenPair([5, 6, 7], [8, 9, 10, 2], [11, 2]),
    TokenPair([20, 21, 22, 23, 24, 25, 26, 27], [30, 2], [31, 32, 33, 34, 35, 2]),
    TokenPair([40], [41, 42, 43, 2], [44, 45, 46, 2]),
    TokenPair([50, 51], [2], [52, 53, 54, 55, 56, 57, 58, 2]),
    TokenPair([60, 61, 3], [2], [2]),
]
EXAMPLES = [PackedExample(pair.prompt, (pair.chosen, pair.rejected)) for pair in PAIRS]


def held_out_set(pairs: list[TokenPair] | None) -> tuple[EvaluationSet, ...]:
    """Return the pairs as the only set to evaluate on; none without pairs."""
    return (EvaluationSet(HELD_OUT, pairs),) if pairs else ()


FAMILIES: dict[str, dict[str, Any]] = {
    "Llama": {},
    "Mistral": {"sliding_window": 5},
    "Qwen2": {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    "Qwen3": {"head_dim": 16},
    "Gemma": {"head_dim": 16},
    "Gemma2": {"head_dim": 16, "sliding_window": 4},
    "Gemma3Text": {"head_dim": 16, "sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]},
    "Phi": {},
    "Phi3": {"sliding_window": None},
    "Granite": {"logits_scaling": 3.0},
    "Cohere": {},
    "SmolLM3": {},
    "Olmo2": {},
}


def random_model(family: str = "Llama", *, vocabulary: int = 64, **changes: Any) -> Any:
    """Return a model with two layers in float32, in evaluation mode."""
    import transformers

    settings = {
        "vocab_size": vocabulary, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
        "attn_implementation": "sdpa" if family != "Gemma2" else "eager",
        **FAMILIES[family], **changes,
    }  # fmt: skip
    config = getattr(transformers, f"{family}Config")(**settings)
    torch.manual_seed(0)
    return getattr(transformers, f"{family.removesuffix('Text')}ForCausalLM")(config).eval()


def adapted(model: Any, dropout: float = 0.0, targets: list[str] | None = None) -> Any:
    """Add adapters with both matrices random, so that each has a gradient."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    settings = LoraConfig(
        task_type="CAUSAL_LM", r=4, lora_alpha=8, lora_dropout=dropout, target_modules=targets or TARGETS,
        init_lora_weights=False,
    )  # fmt: skip
    return get_peft_model(model, settings).train()


def gradients(model: Any) -> dict[str, torch.Tensor]:
    return {
        name: torch.zeros_like(weight) if weight.grad is None else weight.grad.clone()
        for name, weight in model.named_parameters()
        if weight.requires_grad
    }


def assert_same_gradients(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor], tolerance: float) -> None:
    """Compare gradients relative to each weight's largest one."""
    assert ours.keys() == theirs.keys()
    for name, gradient in ours.items():
        scale = theirs[name].abs().max()
        assert scale > 0, name
        assert (gradient - theirs[name]).abs().max() <= tolerance * scale, name
