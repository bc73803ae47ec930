"""Variants of adapters: passes, reference, saving, merging and resuming give what their definitions give in float64."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from merlina.errors import ModelError
from merlina.training.engine.fast_path import choose_logprob_model
from merlina.training.engine.logprobs import PaddedModel
from merlina.training.engine.packing import build_pack
from merlina.training.models.adapters import ignore_known_warnings, make_trainable
from merlina.training.models.merging import merge_adapter
from tests.training.models import EXAMPLES, assert_same_gradients, gradients, random_model
from tests.training.test_trainer import Recorder, configure, resume, train, weights_of

pytestmark = pytest.mark.slow

PACK = build_pack(EXAMPLES, with_prompt_targets=True)
VARIANTS: dict[str, dict[str, Any]] = {
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "whole layers": {
        "modules_to_save": ["embed_tokens", "lm_head", "layers.1.mlp.up_proj"],
        "target_modules": ["q_proj"],
    },
    "a whole tied layer": {"modules_to_save": ["lm_head"]},
}
MODELS: dict[str, dict[str, Any]] = {"a whole tied layer": {"tie_word_embeddings": True}}
IDS = torch.randint(3, 64, (2, 12), generator=torch.Generator().manual_seed(0))


def base_model(variant: str) -> Any:
    return random_model(**MODELS.get(variant, {}))


def trainable(variant: str) -> Any:
    """Return a small model with random adapters."""
    made: Any = make_trainable(base_model(variant), configure(Path("x"), **VARIANTS[variant])).model.train()
    torch.manual_seed(2)
    for name, weight in made.named_parameters():
        if weight.requires_grad:
            # A magnitude is a norm, so it stays in its range.
            weight.data = weight * (1 + 0.1 * torch.randn_like(weight)) + (
                "magnitude" not in name
            ) * 0.1 * torch.randn_like(weight)
    return made


@torch.no_grad()
def logprobs(model: Any) -> torch.Tensor:
    found: torch.Tensor = model.eval()(IDS).logits.log_softmax(-1)
    return found


@pytest.mark.parametrize("variant", VARIANTS)
def test_passes_give_the_loss_and_gradients_of_a_float64_computation(variant: str) -> None:
    model = trainable(variant)
    exact = copy.deepcopy(model).double()
    weights = torch.tensor([0.3, 1.0, -0.7])

    def loss(run: Any) -> torch.Tensor:
        found = run(PACK)
        return (found.sums / found.tokens.clamp(min=1) * weights).mean()

    expected = loss(PaddedModel(exact, 0))
    expected.backward()
    run, reason = choose_logprob_model(model, PACK, 0, "auto", nullcontext())
    assert reason is None
    with run.unchanged_weights():
        found = loss(run)
        found.backward()
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    assert_same_gradients(gradients(model), {name: each.float() for name, each in gradients(exact).items()}, 1e-4)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_untrained_variant_equals_the_base_model_bit_for_bit(variant: str, dtype: torch.dtype) -> None:
    model = make_trainable(base_model(variant).to(dtype), configure(Path("x"), **VARIANTS[variant])).model
    assert all(weight.dtype == torch.float32 for weight in model.parameters() if weight.requires_grad)
    precision: Any = torch.autocast("cpu", dtype) if dtype != torch.float32 else nullcontext()
    with precision:
        with model.disable_adapter():
            expected = logprobs(model)
        assert torch.equal(logprobs(model), expected)
    run, reason = choose_logprob_model(model, PACK, 0, "auto", precision)
    assert reason is None
    with torch.no_grad(), precision:
        policy = run(PACK).sums
        with model.disable_adapter():
            assert torch.equal(run(PACK).sums, policy)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_saved_and_merged_variant_gives_what_it_gave_in_training(variant: str, tmp_path: Path) -> None:
    base_model(variant).save_pretrained(tmp_path / "base")
    model = trainable(variant)
    expected = logprobs(model)
    model.save_pretrained(tmp_path / "adapter")

    def base() -> Any:
        return type(random_model()).from_pretrained(tmp_path / "base", dtype=torch.float32)

    with ignore_known_warnings():
        loaded = PeftModel.from_pretrained(base(), tmp_path / "adapter").eval()
    assert (expected - logprobs(base())).abs().max() > 0.1
    assert torch.equal(logprobs(loaded), expected)
    merged, rounding = merge_adapter(loaded, torch.float32)
    assert rounding.fraction < 1e-6
    assert torch.allclose(logprobs(merged), expected, atol=1e-4)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_resumed_run_of_a_variant_equals_an_uninterrupted_one(variant: str, tiny_model: Path, tmp_path: Path) -> None:
    settings = {**VARIANTS[variant], "lora_dropout": 0.1, "max_steps": 5}
    config = configure(tiny_model, **settings)
    expected = weights_of(train(config, tmp_path / "a", Recorder()))
    train(config, tmp_path / "b", Recorder(stop_after=2, pauses=True))
    trainer, _ = resume(config, tmp_path / "b", Recorder())
    assert all(torch.equal(*pair) for pair in zip(weights_of(trainer.model), expected, strict=True))


def test_dora_of_anything_but_linear_layers_is_refused() -> None:
    from transformers import MixtralConfig, MixtralForCausalLM

    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    model = MixtralForCausalLM(MixtralConfig(vocab_size=64, num_key_value_heads=2, num_local_experts=4, **shape))
    for name in ("experts", "embed_tokens", "lm_head"):
        with pytest.raises(ModelError, match="use_dora: is for linear layers"):
            make_trainable(model, configure(Path("x"), use_dora=True, target_modules=["q_proj", name]))
