"""ORPO against its equations in float64, and against TRL: the same loss, the same gradient of every adapter weight."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from merlina.schemas.training import TrainingMode
from merlina.training.batches import PairCollator
from merlina.training.logprobs import PairLogprobs, fast_path_agrees, pair_logprobs
from merlina.training.objectives import OBJECTIVES, orpo
from merlina.training.tokens import TokenPair

# Shapes that differ: short and long prompts, either answer the longer one, a one-token answer.
PAIRS = [
    TokenPair([5, 6, 7], [8, 9, 10, 2], [11, 2]),
    TokenPair([20, 21, 22, 23, 24, 25, 26, 27], [30, 2], [31, 32, 33, 34, 35, 2]),
    TokenPair([40], [41, 42, 43, 2], [44, 45, 46, 2]),
    TokenPair([50, 51], [2], [52, 53, 54, 55, 56, 57, 58, 2]),
]
logprob = st.floats(-30, -1e-4)


def test_every_training_mode_has_an_objective() -> None:
    assert set(OBJECTIVES) == set(get_args(TrainingMode))


@given(chosen=logprob, rejected=logprob, nll=st.floats(0, 30), beta=st.floats(0.01, 10))
def test_orpo_is_its_equations(chosen: float, rejected: float, nll: float, beta: float) -> None:
    figures = PairLogprobs(*(torch.tensor([value], dtype=torch.float64) for value in (chosen, rejected, nll)))
    odds = [math.exp(value) / -math.expm1(value) for value in (chosen, rejected)]
    log_ratio = math.log(odds[0]) - math.log(odds[1])
    log_sigmoid = -math.log1p(math.exp(-log_ratio)) if log_ratio > -700 else log_ratio
    assert orpo(figures, beta).loss.item() == pytest.approx(nll - beta * log_sigmoid, rel=1e-9, abs=1e-9)


def test_orpo_stays_finite_where_the_model_is_certain() -> None:
    certain = torch.zeros(1, requires_grad=True)
    losses = orpo(PairLogprobs(certain, torch.tensor([-2.0]), -certain), 0.1)
    losses.loss.sum().backward()
    assert torch.isfinite(losses.loss).all()
    assert torch.isfinite(certain.grad).all()


@pytest.fixture(scope="module")
def adapted(tiny_model: Path) -> Any:
    """The tiny model in float32 with random adapters, nothing dropped."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    torch.manual_seed(1)
    targets = ["up_proj", "down_proj", "gate_proj", "k_proj", "q_proj", "v_proj", "o_proj"]
    adapted = get_peft_model(
        model,
        LoraConfig(
            task_type="CAUSAL_LM", r=4, lora_alpha=8, lora_dropout=0.0, target_modules=targets, init_lora_weights=False
        ),
    )
    return adapted.train()


@pytest.mark.parametrize("pair", PAIRS)
def test_loss_and_adapter_gradients_equal_trls(adapted: Any, pair: TokenPair, tmp_path: Path) -> None:
    ours, our_gradients = _ours(adapted, [pair])
    theirs, their_gradients = _trls(adapted, pair, tmp_path)
    assert ours == pytest.approx(theirs, rel=1e-4)
    assert our_gradients.keys() == their_gradients.keys()
    for name, gradient in our_gradients.items():
        scale = their_gradients[name].abs().max()
        assert scale > 0, name
        assert (gradient - their_gradients[name]).abs().max() <= 1e-4 * scale, name


@pytest.mark.parametrize("cut", [[4], [2, 2], [1, 3], [1, 1, 1, 1]])
def test_how_pairs_are_cut_into_batches_changes_no_gradient(adapted: Any, cut: list[int]) -> None:
    single = [_ours(adapted, [pair]) for pair in PAIRS]
    mean_loss = sum(loss for loss, _ in single) / len(PAIRS)
    adapted.zero_grad()
    loss, begin = 0.0, 0
    for size in cut:
        batch = PairCollator(pad_id=0)(PAIRS[begin : begin + size])
        share = orpo(pair_logprobs(adapted, batch), 0.1).loss.sum() / len(PAIRS)
        share.backward()
        loss, begin = loss + share.item(), begin + size
    assert loss == pytest.approx(mean_loss, rel=1e-5)
    for name, weight in adapted.named_parameters():
        if weight.requires_grad:
            mean = sum(gradients[name] for _, gradients in single) / len(PAIRS)
            assert torch.allclose(weight.grad, mean, rtol=1e-4, atol=1e-6), name


def test_hidden_states_and_head_give_what_the_models_own_logits_give(adapted: Any) -> None:
    batch = PairCollator(pad_id=0)(PAIRS)
    fast, own = pair_logprobs(adapted, batch), pair_logprobs(adapted, batch, plain=True)
    for name in ("chosen", "rejected", "chosen_nll"):
        assert torch.allclose(getattr(fast, name), getattr(own, name), rtol=1e-5, atol=1e-6)
    assert fast_path_agrees(adapted, batch)


@pytest.mark.parametrize("family", ["Gemma2", "Granite", "Cohere"])
def test_models_that_change_their_logits_are_read_right(family: str) -> None:
    import transformers

    config = getattr(transformers, f"{family}Config")(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    if family == "Granite":
        config.logits_scaling = 3.0
    torch.manual_seed(0)
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    assert fast_path_agrees(model, PairCollator(pad_id=0)(PAIRS))


def _ours(model: Any, pairs: list[TokenPair]) -> tuple[float, dict[str, torch.Tensor]]:
    model.zero_grad()
    loss = orpo(pair_logprobs(model, PairCollator(pad_id=0)(pairs)), 0.1).loss.mean()
    loss.backward()
    return loss.item(), _gradients(model)


def _trls(model: Any, pair: TokenPair, folder: Path) -> tuple[float, dict[str, torch.Tensor]]:
    """The loss TRL's trainer computes for the same ids, by its own code on a batch as its collator makes them."""
    from trl.experimental.orpo import ORPOTrainer

    trainer = ORPOTrainer.__new__(ORPOTrainer)
    trainer.beta, trainer.is_encoder_decoder, trainer.aux_loss_enabled, trainer.padding_value = 0.1, False, False, 0
    trainer.accelerator = _accelerator()
    model.zero_grad()
    loss, _ = trainer.get_batch_loss_metrics(model, _trl_batch(pair))
    loss.backward()
    return loss.item(), _gradients(model)


def _accelerator() -> Any:
    from accelerate import Accelerator

    return Accelerator(cpu=True)


def _trl_batch(pair: TokenPair) -> dict[str, torch.Tensor]:
    batch = {}
    for name, answer in (("chosen", pair.chosen), ("rejected", pair.rejected)):
        ids = torch.tensor([pair.prompt + answer])
        batch[f"{name}_input_ids"] = ids
        batch[f"{name}_attention_mask"] = torch.ones_like(ids)
        batch[f"{name}_labels"] = torch.tensor([[-100] * len(pair.prompt) + answer])
    return batch


def _gradients(model: Any) -> dict[str, torch.Tensor]:
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.requires_grad}
