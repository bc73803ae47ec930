"""The reference: which texts it computes, and that its results are stored even if the computation is interrupted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from merlina.schemas.training.machine import WeightBits
from merlina.training.engine.packing import PackedExample
from merlina.training.loop.trainer import PreferenceTrainer
from merlina.training.loop.unrelated_examples import unrelated_examples
from merlina.training.models.adapters import make_trainable
from merlina.training.models.loading import ModelSpec, load_model
from merlina.training.models.tokens import TokenPair
from merlina.training.reporter import StoppedEarly
from tests.training.models import held_out_set
from tests.training.test_trainer import Recorder, configure

pytestmark = pytest.mark.slow

# Each takes the whole budget of a pass on a CPU, so that it is a pass alone.
LONG = [TokenPair([5, 6, n], [8 + n] * 500 + [2], [9] * 480 + [2], row=n) for n in range(4)]


def example(prompt: int, chosen: int) -> PackedExample:
    return PackedExample([prompt], ([chosen, chosen, 2], [99, 2]))


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([(1, 10), (2, 20), (3, 30)], [30, 10, 20]),
        ([(1, 10), (1, 10), (1, 11), (2, 20), (2, 21)], [21, 21, 21, 11, 11]),
        ([(2, 20), (1, 10), (2, 21), (2, 22)], [10, 20, 10, 10]),
        ([(1, 10), (1, 10), (1, 11)], [11, 11, 10]),
        ([(1, 10), (1, 10)], [10, 10]),
        ([(1, 10)], [10]),
    ],
)
def test_an_unrelated_answer_is_the_nearest_that_belongs_to_another_prompt(
    rows: list[tuple[int, int]], expected: list[int]
) -> None:
    examples = [example(*row) for row in rows]
    found = unrelated_examples(examples, max_length=3)
    assert [one.prompt for one in found] == [one.prompt for one in examples]
    assert [one.answers for one in found] == [([answer, answer],) for answer in expected]


@pytest.mark.parametrize("weight_bits", [None, 4, 8])
def test_before_the_first_step_the_policy_equals_the_reference(
    tiny_model: Path, tmp_path: Path, weight_bits: WeightBits | None
) -> None:
    config = configure(
        tiny_model, training_mode="dpo", use_4bit=weight_bits == 4, use_8bit=weight_bits == 8, eval_steps=1
    )
    recorder = Recorder()
    begin(config, tmp_path, recorder).evaluate()
    ((_, metrics),) = recorder.rows
    assert (metrics["eval_rewards_chosen"], metrics["eval_rewards_rejected"]) == (0, 0)
    assert (metrics["eval_loss"], metrics["eval_reward_accuracy"]) == (pytest.approx(math.log(2), abs=1e-7), 0.5)
    assert metrics["eval_logps_chosen"] < -1


class StopsAtCheck(Recorder):
    """Requests a stop at the n-th check."""

    def __init__(self, stop_at: int | None = None) -> None:
        super().__init__()
        self.checks = 0
        self._stop_at = stop_at

    def should_stop(self) -> bool:
        self.checks += 1
        return self.checks == self._stop_at


def begin(config: Any, folder: Path, recorder: Recorder, training: Sequence[TokenPair] = LONG) -> PreferenceTrainer:
    torch.manual_seed(0)
    spec = ModelSpec(config.base_model, "float32", config.weight_bits, "auto", folder)
    model = make_trainable(load_model(spec), config).model
    return PreferenceTrainer(
        model, config, training=training, evaluation=held_out_set(LONG[:1]), pad_id=0, dtype=torch.float32,
        folder=folder / "checkpoints", reporter=recorder, resuming=False,
    )  # fmt: skip


def test_a_stop_takes_effect_between_passes_and_stored_results_are_not_computed_again(
    tiny_model: Path, tmp_path: Path
) -> None:
    config = configure(tiny_model, training_mode="dpo")
    with pytest.raises(StoppedEarly):
        begin(config, tmp_path / "a", StopsAtCheck(stop_at=4))
    rest, undisturbed = StopsAtCheck(), StopsAtCheck()
    resumed = begin(config, tmp_path / "a", rest)
    whole = begin(config, tmp_path / "b", undisturbed)
    assert (rest.checks, undisturbed.checks) == (1, 4)
    for ours, theirs in zip(resumed.train_dataset, whole.train_dataset, strict=True):
        assert torch.allclose(ours.reference, theirs.reference)
        assert ours.reference.isfinite().all()


@pytest.mark.parametrize("mode", ["dpo", "kto"])
def test_the_copies_of_a_pair_share_one_computation(tiny_model: Path, tmp_path: Path, mode: str) -> None:
    config = configure(tiny_model, training_mode=mode, eval_steps=0)
    once, twice = StopsAtCheck(), StopsAtCheck()
    apart = begin(config, tmp_path / "once", once).train_dataset
    repeated = begin(config, tmp_path / "twice", twice, [*LONG, *LONG[::-1]]).train_dataset
    # With another pair before it, a copy may have another unrelated answer.
    assert twice.checks <= once.checks + (len(LONG) if mode == "kto" else 0)
    for ours, theirs in zip(repeated, [*apart, *list(apart)[::-1]], strict=True):
        assert ours.reference.isfinite().all()
        assert torch.equal(ours.reference, theirs.reference)
    stored = begin(config, tmp_path / "twice", again := StopsAtCheck(), [*LONG, *LONG[::-1]]).train_dataset
    assert again.checks == 0
    assert all(torch.equal(ours.reference, theirs.reference) for ours, theirs in zip(stored, repeated, strict=True))
