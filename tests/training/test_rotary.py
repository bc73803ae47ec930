"""Length-dependent rotary embeddings: each text has the same result in a pack as alone."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from typing import Any

import pytest
import torch

from merlina.training.engine.attention.rotary import LengthGroupedModel, RotaryLengths
from merlina.training.engine.fast_path import choose_logprob_model
from merlina.training.engine.logprobs import PaddedModel
from merlina.training.engine.packing import PackedExample, build_pack
from tests.training.models import adapted, random_model

pytestmark = pytest.mark.slow

# Prompts and answers by length around a limit of 24 tokens: on either side, just at it, on both sides of it.
LENGTHS = [(8, 4, 2), (8, 16, 17), (10, 40, 3), (9, 15, 50), (20, 30, 41), (1, 23, 24)]
ROPES: dict[str, dict[str, Any]] = {
    "longrope": {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4, "original_max_position_embeddings": 24},
    "dynamic": {},
}


def model_and_examples(kind: str) -> tuple[Any, list[PackedExample]]:
    rope = {"rope_type": kind, "rope_theta": 1e4, "factor": 4.0, **ROPES[kind]}
    positions = 24 if kind == "dynamic" else 96
    model = adapted(random_model(rope_parameters=rope, max_position_embeddings=positions, initializer_range=0.2)).eval()
    draw = torch.Generator().manual_seed(0)
    tokens = [[torch.randint(5, 60, (length,), generator=draw).tolist() for length in example] for example in LENGTHS]
    return model, [PackedExample(prompt, tuple(answers)) for prompt, *answers in tokens]


def of_text(model: Any, text: list[int]) -> torch.Tensor:
    """Return log-probabilities by a copy of the model that has not run any text yet."""
    ids = torch.tensor([text])
    with torch.no_grad():
        logits = copy.deepcopy(model).double()(input_ids=ids, use_cache=False).logits[0, :-1]
    return logits.log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]


@pytest.mark.parametrize("way", ["packed", "padded"])
@pytest.mark.parametrize("kind", ROPES)
def test_a_text_has_the_same_result_alone_and_in_any_pass(kind: str, way: str) -> None:
    model, examples = model_and_examples(kind)
    expected = torch.zeros(len(examples), 3, dtype=torch.float64)
    for number, example in enumerate(examples):
        by_answer = [of_text(model, example.prompt + answer) for answer in example.answers]
        begin = len(example.prompt) - 1
        expected[number, 0] = by_answer[0][:begin].sum()
        expected[number, 1:] = torch.stack([logprobs[begin:].sum() for logprobs in by_answer])
    if way == "packed":
        run, reason = choose_logprob_model(
            model, build_pack(examples, with_prompt_targets=True), 0, "auto", nullcontext()
        )
        assert reason is None
    else:
        run = LengthGroupedModel(PaddedModel(model, 0), RotaryLengths(model.get_base_model()))
    for passes in ([[0, 1, 2, 3, 4, 5]], [[5, 3], [4, 0, 1], [2]], [[4], [2], [0], [1], [5], [3]]):
        for indices in passes:
            pack = build_pack([examples[index] for index in indices], with_prompt_targets=True)
            with torch.no_grad():
                found = run(pack)
            assert torch.allclose(found.sums.double(), expected[indices], atol=2e-4)
            assert found.tokens.tolist() == [
                [len(examples[i].prompt) - 1, *map(len, examples[i].answers)] for i in indices
            ]


def test_most_models_have_no_such_embedding() -> None:
    assert not RotaryLengths(random_model())
