"""A merged model gives what its adapter gives: tied embeddings, routed experts, transposed weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from merlina.training.models.adapters import ignore_known_warnings, make_trainable
from merlina.training.models.merging import merge_adapter
from tests.training.test_trainer import configure

pytestmark = pytest.mark.slow

_SHAPE: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_FAMILIES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "Mixtral": ({**_SHAPE, "num_local_experts": 4}, ["q_proj", "experts"]),
    "Qwen2": ({**_SHAPE, "tie_word_embeddings": True}, ["lm_head", "down_proj"]),
    "GPT2": (
        {
            "vocab_size": 64,
            "n_embd": 32,
            "n_layer": 2,
            "n_head": 4,
            "n_positions": 64,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
        ["c_attn", "c_proj", "lm_head"],
    ),
}


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
@pytest.mark.parametrize("family", list(_FAMILIES))
def test_a_merged_model_gives_what_its_adapter_gives(family: str, tmp_path: Path) -> None:
    import transformers

    changes, targets = _FAMILIES[family]
    kind = getattr(transformers, f"{family}LMHeadModel" if family == "GPT2" else f"{family}ForCausalLM")
    torch.manual_seed(0)
    kind(getattr(transformers, f"{family}Config")(**changes)).save_pretrained(tmp_path / "base")

    def base() -> Any:
        return kind.from_pretrained(tmp_path / "base", dtype=torch.float32).eval()

    ids = torch.randint(3, 64, (2, 12))

    @torch.no_grad()
    def logprobs(model: Any) -> torch.Tensor:
        found: torch.Tensor = model(ids).logits.log_softmax(-1)
        return found

    trained: Any = make_trainable(base(), configure(tmp_path / "base", target_modules=targets, lora_dropout=0)).model
    for weight in trained.parameters():
        if weight.requires_grad:
            torch.nn.init.normal_(weight, std=0.1)
    trained.save_pretrained(tmp_path / "adapter")
    with ignore_known_warnings():
        adapted = PeftModel.from_pretrained(base(), tmp_path / "adapter").eval()
    expected = logprobs(adapted)
    merged, rounding = merge_adapter(adapted, torch.float32)
    merged.save_pretrained(tmp_path / "merged")
    found = logprobs(kind.from_pretrained(tmp_path / "merged", dtype=torch.float32).eval())
    changed = (expected - logprobs(base())).abs().max()
    difference = (found - expected).abs().max()
    print(f"{family}: the adapter changes log-probabilities by {changed:.2g}, merging by {difference:.1g}")
    assert changed > 0.1
    assert rounding.fraction == 0
    assert torch.allclose(found, expected, atol=1e-4)
