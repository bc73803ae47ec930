"""NEFTune: the noise of its paper, the same for any layout and division of a step, and none outside of training."""

from __future__ import annotations

import copy
import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from merlina.training.engine.embedding_noise import NoiseSource, noise_of_pack
from merlina.training.engine.fast_path import choose_logprob_model
from merlina.training.engine.logprobs import LogprobModel, PaddedModel, UnbatchedModel
from merlina.training.engine.packing import PackedExample, build_pack
from tests.training.models import EXAMPLES, adapted, assert_same_gradients, gradients, random_model
from tests.training.test_repeatability import digest
from tests.training.test_repeatability import train as train_repeatably
from tests.training.test_trainer import PAIRS, Recorder, configure, train

pytestmark = pytest.mark.slow

SOURCE = NoiseSource(alpha=40.0, seed=7)
NOISY = [SOURCE.on(example, step=3, index=index) for index, example in enumerate(EXAMPLES)]


def test_noise_is_uniform_with_the_amplitude_of_the_paper() -> None:
    example = SOURCE.on(PackedExample(list(range(150)), ([1] * 51, [2] * 20)), 1, 0)
    noise: Any = noise_of_pack([example])
    found = noise(torch.zeros(1, 150 + 50 + 19, 64))
    bound = 40 / math.sqrt(201 * 64)
    assert found.shape == (1, 219, 64)
    assert found.abs().max() <= bound
    assert found.abs().max() > 0.99 * bound
    assert abs(found.mean()) < 0.05 * bound
    assert found.var().item() == pytest.approx(bound**2 / 3, rel=0.03)


def test_sections_pairs_steps_and_seeds_have_noise_of_their_own() -> None:
    example = PackedExample([5, 6, 7], ([8, 9, 10, 11], [8, 9, 10, 11]))
    empty = torch.zeros(1, 9, 16)
    noises = []
    for seed, step, index in ((7, 1, 0), (7, 1, 1), (7, 2, 0), (8, 1, 0)):
        noise: Any = noise_of_pack([NoiseSource(5.0, seed).on(example, step, index)])
        noises += noise(empty)[0].split(3)
    assert len(noises) == 12
    assert len({tuple(noise.flatten().tolist()) for noise in noises}) == 12


@pytest.mark.parametrize("layout", ["packed", "padded", "one text at a time", "passes of one pair"])
def test_every_layout_gives_what_noise_on_the_embeddings_gives_in_float64(layout: str) -> None:
    model = adapted(random_model())
    exact = copy.deepcopy(model).double()
    expected = _by_hand(exact)
    (expected * torch.tensor([1.0, -0.7])).sum().backward()
    runs: dict[str, LogprobModel] = {"padded": PaddedModel(model, 0), "one text at a time": UnbatchedModel(model, 0)}
    if layout not in runs:
        clean = build_pack(EXAMPLES, with_prompt_targets=False)
        runs[layout], reason = choose_logprob_model(model, clean, 0, "auto", nullcontext())
        assert reason is None
    passes = [[noisy] for noisy in NOISY] if layout == "passes of one pair" else [NOISY]
    found = torch.cat([runs[layout](build_pack(each, with_prompt_targets=False)).sums[:, 1:] for each in passes])
    (found * torch.tensor([1.0, -0.7])).sum().backward()
    assert torch.allclose(found.double(), expected, atol=1e-4)
    assert_same_gradients(gradients(model), {name: each.float() for name, each in gradients(exact).items()}, 1e-4)
    clean_sums = runs[layout](build_pack(EXAMPLES, with_prompt_targets=False)).sums[:, 1:]
    assert (clean_sums - found).abs().max() > 0.01


def _by_hand(model: Any) -> torch.Tensor:
    """Return log pi(y|x) of each answer, [U, A], with the noise added to the embeddings of each text alone."""
    causal_lm, sums = model.get_base_model(), []
    for noisy in NOISY:
        noise: Any = noise_of_pack([noisy])
        rows = noise(torch.zeros(1, noisy.num_positions, 32))[0].double()
        begin = len(noisy.prompt)
        for answer in noisy.answers:
            end = begin + len(answer) - 1
            ids = torch.tensor([noisy.prompt + answer])
            embeddings = causal_lm.get_input_embeddings()(ids[:, :-1])
            embeddings = embeddings + torch.cat([rows[: len(noisy.prompt)], rows[begin:end]])
            logprobs = causal_lm(inputs_embeds=embeddings).logits[0].log_softmax(-1)
            sums.append(logprobs.gather(1, ids[0, 1:, None])[len(noisy.prompt) - 1 :].sum())
            begin = end
    return torch.stack(sums).view(-1, 2)


def test_noise_changes_training_but_no_evaluation_before_it(tiny_model: Path, tmp_path: Path) -> None:
    plain, noisy = Recorder(), Recorder()
    settings = {"training_mode": "dpo", "eval_steps": 1, "max_steps": 1}
    train(configure(tiny_model, **settings), tmp_path / "a", plain, held_out=PAIRS[:3])
    train(configure(tiny_model, neftune_noise_alpha=5.0, **settings), tmp_path / "b", noisy, held_out=PAIRS[:3])
    before, with_noise = plain.rows[0][1], noisy.rows[0][1]
    assert with_noise["eval_loss"] == before["eval_loss"] == pytest.approx(math.log(2))
    assert plain.rows[1][1]["loss"] == pytest.approx(math.log(2))
    # The reference has no noise, so the first loss of training is no longer log 2.
    assert noisy.rows[1][1]["loss"] != pytest.approx(math.log(2), abs=1e-4)


def test_a_pause_changes_no_bit_of_a_run_with_noise(tiny_model: Path, tmp_path: Path) -> None:
    config = configure(tiny_model, max_steps=6, neftune_noise_alpha=5.0, learning_rate=1e-2, eval_steps=2)
    expected = digest(train_repeatably(config, tmp_path / "a", Recorder()))
    train_repeatably(config, tmp_path / "b", Recorder(stop_after=3, pauses=True))
    assert digest(train_repeatably(config, tmp_path / "b", Recorder(), resume=True)) == expected
