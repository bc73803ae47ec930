"""The base model's own dropout is off in training unless disable_dropout is false."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from merlina.training.loop.trainer import PreferenceTrainer
from merlina.training.models.adapters import make_trainable
from tests.training.models import PAIRS
from tests.training.test_trainer import Recorder, configure

pytestmark = pytest.mark.slow

# Modules of dropout (GPT-2, GPT-NeoX), probabilities passed to a function (OPT, Mixtral's attention), and noise.
_SMALL: dict[str, Any] = {"vocab_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2, "hidden_size": 32}
_FAMILIES: dict[str, dict[str, Any]] = {
    "GPT2": {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "OPT": {**_SMALL, "ffn_dim": 64, "word_embed_proj_dim": 32, "max_position_embeddings": 64, "attention_dropout": 0.1,
            "layerdrop": 0.3},
    "GPTNeoX": {**_SMALL, "intermediate_size": 64, "hidden_dropout": 0.1, "attention_dropout": 0.1},
    "Mixtral": {**_SMALL, "intermediate_size": 64, "num_key_value_heads": 2, "num_local_experts": 2,
                "attention_dropout": 0.2, "router_jitter_noise": 0.2},
}  # fmt: skip
_TARGETS = {"GPT2": ["c_attn", "c_proj"], "GPTNeoX": ["query_key_value"]}


def first_loss(family: str, folder: Path, **changes: Any) -> float:
    import transformers

    torch.manual_seed(0)
    made = getattr(transformers, f"{family}Config")(**_FAMILIES[family], pad_token_id=0, bos_token_id=1, eos_token_id=2)
    model = getattr(transformers, f"{family}LMHeadModel" if family == "GPT2" else f"{family}ForCausalLM")(made)
    config = configure(
        folder, training_mode="dpo", target_modules=_TARGETS.get(family, ["q_proj", "v_proj"]), lora_dropout=0.05,
        batch_size=len(PAIRS), max_steps=1, **changes,
    )  # fmt: skip
    trainable = make_trainable(model, config).model
    recorder = Recorder()
    PreferenceTrainer(
        trainable, config, training=PAIRS, evaluation=(), pad_id=0, dtype=torch.float32, folder=folder,
        reporter=recorder, resuming=False,
    ).run(None)  # fmt: skip
    ((_, metrics),) = recorder.rows
    return metrics["loss"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", list(_FAMILIES))
def test_the_first_dpo_loss_is_ln_2(family: str, tmp_path: Path) -> None:
    without = first_loss(family, tmp_path / "off")
    kept = first_loss(family, tmp_path / "on", disable_dropout=False)
    print(f"{family}: first DPO loss {without:.9f} without the model's dropout, {kept:.6f} with it")
    assert without == pytest.approx(math.log(2), abs=1e-6)
    assert abs(kept - math.log(2)) > 1e-5
