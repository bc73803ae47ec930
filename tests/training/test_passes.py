"""The division of examples into passes: budgets are kept, and no example changes the result of another."""

from __future__ import annotations

from contextlib import nullcontext
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from merlina.training.engine.attention.rope_config import rope_length_limits
from merlina.training.engine.fast_path import choose_logprob_model
from merlina.training.engine.logprobs import PackedModel, PaddedModel
from merlina.training.engine.packing import PackedExample, build_pack
from merlina.training.engine.passes import PackedBatching, PaddedBatching, PassPlanner
from tests.training.models import EXAMPLES, adapted, random_model

pytestmark = pytest.mark.slow

tokens = st.lists(st.integers(0, 99), min_size=1, max_size=12)
examples = st.builds(lambda prompt, first, second: PackedExample(prompt, (first, second)), tokens, tokens, tokens)


@pytest.mark.parametrize("kind", [PackedModel, PaddedModel])
def test_a_batching_strategy_knows_what_its_model_computes(kind: Any) -> None:
    model, computed = random_model(), []
    run = kind(model, "auto" if kind is PackedModel else 0)
    model.model.register_forward_pre_hook(lambda _, __, named: computed.append(named["input_ids"]), with_kwargs=True)
    run(build_pack(EXAMPLES, with_prompt_targets=False))
    assert run.batching.num_positions(EXAMPLES) == computed[0].numel()
    alone = build_pack(EXAMPLES[1:2], with_prompt_targets=False)
    run(alone)
    furthest = int(alone.position_ids.max()) + 1
    assert run.batching.longest_text(EXAMPLES[1]) == (furthest if kind is PackedModel else computed[1].shape[1])


@given(content=st.lists(examples, min_size=1, max_size=30), budget=st.integers(1, 60))
def test_packs_hold_every_example_once_and_keep_to_their_budget(content: list[PackedExample], budget: int) -> None:
    packs = PackedBatching().split(content, budget)
    assert sorted(index for pack in packs for index in pack) == list(range(len(content)))
    for pack in packs:
        assert len(pack) == 1 or sum(content[index].num_positions for index in pack) <= budget
    assert packs == first_fit([example.num_positions for example in content], budget)


def first_fit(sizes: list[int], budget: int) -> list[list[int]]:
    """First-fit decreasing in its simplest form."""
    packs: list[list[int]] = []
    for index in sorted(range(len(sizes)), key=lambda index: -sizes[index]):
        fitting = [pack for pack in packs if sum(sizes[other] for other in pack) + sizes[index] <= budget]
        if not fitting:
            packs.append([])
        (fitting or packs[-1:])[0].append(index)
    return packs


@given(content=st.lists(examples, min_size=1, max_size=30), budget=st.integers(1, 150))
def test_padded_passes_hold_every_example_once_and_keep_to_their_budget(
    content: list[PackedExample], budget: int
) -> None:
    passes = PaddedBatching().split(content, budget)
    assert sorted(index for indices in passes for index in indices) == list(range(len(content)))
    for indices in passes:
        assert len(indices) == 1 or PaddedBatching().num_positions([content[index] for index in indices]) <= budget
    # The next longest did not fit into the previous pass.
    for before, after in pairwise(passes):
        assert PaddedBatching().num_positions([content[index] for index in (*before, after[0])]) > budget


@pytest.mark.parametrize("kind", ["longrope", "dynamic"])
def test_a_long_text_changes_nothing_of_a_short_one(kind: str) -> None:
    """Rotary embeddings use other angles once a pass exceeds a limit."""
    rope: dict[str, Any] = {"rope_type": kind, "rope_theta": 1e4, "factor": 4.0}
    if kind == "longrope":
        rope |= {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4, "original_max_position_embeddings": 24}
    trained_to = 25 if kind == "dynamic" else 96
    model = adapted(random_model(rope_parameters=rope, max_position_embeddings=trained_to, initializer_range=0.2))
    draw = torch.Generator().manual_seed(0)
    # The third reaches just to the limit.
    answers = [4, 30, 17, 5]
    content = [
        PackedExample([5] * 8, (torch.randint(5, 60, (length,), generator=draw).tolist(), [6, 7])) for length in answers
    ]
    run, reason = choose_logprob_model(
        model, build_pack(content[:1], with_prompt_targets=False), 0, "auto", nullcontext()
    )
    assert reason is None
    model.eval()

    def sums(passes: list[list[int]]) -> torch.Tensor:
        found = torch.zeros(len(content), 3)
        with torch.no_grad():
            for indices in passes:
                found[indices] = run(build_pack([content[index] for index in indices], with_prompt_targets=False)).sums
        return found

    alone = sums([[index] for index in range(len(content))])
    passes = PassPlanner(run.batching, 1000, length_limits=rope_length_limits(model.get_base_model().config))
    assert passes.length_limits == (24,)
    assert [sorted(indices) for indices in passes.split(content)] == [[0, 2, 3], [1]]
    assert torch.allclose(sums(passes.split(content)), alone, atol=1e-4)
    assert torch.allclose(sums(PassPlanner(run.batching, 1000).split(content)), alone, atol=1e-4)


def test_length_limits_cover_each_kind_of_layer_and_most_models_have_none() -> None:
    assert rope_length_limits(random_model().config) == ()
    assert rope_length_limits(random_model("Gemma3Text").config) == ()
    kinds = {"full_attention": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}
    model = random_model("Gemma3Text", rope_parameters=kinds, max_position_embeddings=77)
    assert rope_length_limits(model.config) == (76,)
