from __future__ import annotations

import re
from typing import Any

import pytest

from merlina.domain.adapter_targets import Site
from merlina.hardware.gpus import Gpu
from merlina.preflight.memory_check import check_memory
from merlina.preflight.memory_estimate import estimate, trained_weights
from merlina.schemas.inspection import ModelFacts
from tests.preflight.facts import FACTS, config


def test_a_frozen_model_too_large_for_one_gpu_is_sharded() -> None:
    cards = [Gpu(0, "a", 24_000, 20_000, 4_000), Gpu(1, "b", 24_000, 15_000, 9_000), Gpu(2, "c", 24_000, 16_000, 8_000)]
    alone, of_one = check_memory(
        config(use_4bit=False, gpu_ids=[0], max_length=512, max_prompt_length=256), FACTS, None, cards[:1], lambda _: 0
    )
    together, of_three = check_memory(
        config(use_4bit=False, gpu_ids=[0, 1, 2], max_length=512, max_prompt_length=256),
        FACTS,
        None,
        cards,
        lambda _: 0,
    )
    assert of_one is not None
    assert of_three is not None
    assert (alone.passed, together.passed) == (False, True)
    assert (of_three.place, of_three.free_mb) == ("GPU 1", 15_000)
    assert of_three.parts_mb["weights"] < 0.5 * of_one.parts_mb["weights"]


def test_a_run_that_does_not_fit_names_its_largest_component_and_the_best_savings() -> None:
    card = Gpu(0, "a", 24_000, 20_000, 4_000)
    finding, memory = check_memory(config(use_4bit=False, max_length=8192), FACTS, None, [card], lambda _: 0)
    assert memory is not None
    assert memory.needed_mb > memory.free_mb == 20_000
    assert list(memory.parts_mb.values()) == sorted(memory.parts_mb.values(), reverse=True)
    largest = next(iter(memory.parts_mb))
    assert f"Largest component: {largest} (" in finding.errors[0]
    helping = re.findall(r"\(([0-9.]+) GiB\)", finding.errors[0].split("To reduce it:")[1])
    assert helping == sorted(helping, key=float)
    assert check_memory(config(use_4bit=False, max_length=8192), FACTS, None, [card], lambda gpu: 10**6 * (gpu == 0))[
        0
    ].passed
    smaller = config(gradient_checkpointing=True, max_length=512, max_prompt_length=128)
    assert check_memory(smaller, FACTS, None, [card], lambda _: 0)[0].passed


def test_variants_of_adapters_are_counted_and_dora_is_among_the_savings() -> None:
    head = Site(path="lm_head", kind="output head", parameters=4096 * 128_256, adapter_width=132_352, outputs=128_256)
    projection = FACTS.sites[0].model_copy(update={"outputs": 32 * 4096})
    facts = FACTS.model_copy(update={"sites": [projection, head]})
    for device in ("cpu", "cuda"):
        plain, dora, whole = (
            estimate(config(use_4bit=False, **changes), facts, None, device)
            for changes in ({}, {"use_dora": True}, {"modules_to_save": ["lm_head"]})
        )
        assert dora.components["activations"] > 1.2 * plain.components["activations"]
        # A float32 copy of the head, its gradients and the state of an 8-bit optimizer.
        assert whole.components["weights"] - plain.components["weights"] >= 4 * head.parameters
        assert whole.components["gradients"] - plain.components["gradients"] >= 8 * head.parameters
        assert whole.components["optimizer state"] - plain.components["optimizer state"] >= 2 * head.parameters
    small = Gpu(0, "a", 24_000, 20_000, 4_000)
    refused, _ = check_memory(config(use_4bit=False, use_dora=True, max_length=4096), facts, None, [small], lambda _: 0)
    assert "use_dora false (" in refused.errors[0]


def test_each_saving_makes_the_estimate_smaller() -> None:
    whole = estimate(config(use_4bit=False), FACTS, None, "cuda").total
    for change in (
        {"use_4bit": True},
        {"gradient_checkpointing": True},
        {"use_8bit": True},
        {"max_length": 1025},
        {"lora_r": 8},
    ):
        assert estimate(config(**{"use_4bit": False, **change}), FACTS, None, "cuda").total < whole


def test_attention_scores_are_counted_if_they_are_stored() -> None:
    def scores(facts: ModelFacts = FACTS, device: str = "cuda", **changes: Any) -> float:
        return estimate(config(**changes), facts, None, device).components.get("attention scores", 0)

    capped = FACTS.model_copy(update={"caps_scores": True})
    dropped = FACTS.model_copy(update={"drops_scores": True})
    assert scores() == scores(device="cpu") == 0
    queries_by_keys = 4096**2  # a pair as long as max_length allows, both answers
    assert scores(capped) == pytest.approx(1.1 * 32 * queries_by_keys * (32 * 8 + 8))
    assert scores(capped, gradient_checkpointing=True) == pytest.approx(1.1 * 32 * queries_by_keys * 16)
    assert scores(attn_implementation="eager") == pytest.approx(1.1 * 32 * queries_by_keys * (32 * 6 + 8))
    assert scores(attn_implementation="sdpa") == queries_by_keys * 4
    assert scores(dropped, "cpu") == 0
    assert scores(dropped, disable_dropout=False) == 0
    assert scores(dropped, "cpu", disable_dropout=False) > 0


def test_a_model_without_packing_computes_all_logits() -> None:
    own_way = FACTS.model_copy(update={"supports_packing": False})
    logits = estimate(config(), own_way, None, "cuda").components["log-probabilities"]
    assert logits == 2 * 2048 * 128_256 * 14
    assert logits > 5 * estimate(config(), FACTS, None, "cuda").components["log-probabilities"]


def test_layers_named_by_path_count_in_the_adapter_size() -> None:
    named = trained_weights(config(target_modules=["self_attn.q_proj"]), FACTS)
    assert named == trained_weights(config(target_modules=["q_proj"]), FACTS) > 0
