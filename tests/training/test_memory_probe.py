from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from merlina.errors import TrainingError
from merlina.training.engine.packing import PackedExample
from merlina.training.engine.passes import PackedBatching, PaddedBatching, PassPlanner
from merlina.training.loop.memory_probe import find_fitting_planner, hold_step_memory
from tests.training.test_trainer import Recorder, configure, train, weights_of

pytestmark = pytest.mark.slow


def example(positions: int) -> PackedExample:
    return PackedExample([1], ([2] * positions, [3]))


def device_with(capacity: int, tried: list[int]) -> Callable[[Sequence[PackedExample]], None]:
    """Return a run that fails like a GPU with memory for `capacity` positions."""

    def run(examples: Sequence[PackedExample]) -> None:
        tried.append(sum(one.num_positions for one in examples))
        if tried[-1] > capacity:
            raise torch.OutOfMemoryError("CUDA out of memory")

    return run


@pytest.mark.parametrize("batching", [PackedBatching(), PaddedBatching()])
@given(sizes=st.lists(st.integers(2, 60), min_size=1, max_size=30), budget=st.integers(2, 200))
def test_the_largest_pass_is_at_least_the_longest_pair_and_any_pass(
    batching: PackedBatching | PaddedBatching, sizes: list[int], budget: int
) -> None:
    examples = [example(size) for size in sizes]
    passes, alone = PassPlanner(batching, budget), max(batching.num_positions([one]) for one in examples)
    largest = batching.num_positions(passes.largest_pass(examples))
    assert alone <= largest <= max(budget, alone)
    assert all(
        batching.num_positions([examples[index] for index in indices]) <= largest for indices in passes.split(examples)
    )


def test_the_largest_pass_of_any_step_holds_no_more_pairs_than_a_step() -> None:
    examples = [example(length) for length in (10, 40, 20, 30)]
    passes = PassPlanner(PackedBatching(), budget=100)
    assert passes.candidates_for_largest(examples, 2) == [examples[1], examples[3]]
    assert passes.candidates_for_largest(examples, 3) == [examples[1], examples[3], examples[2]]
    assert PassPlanner(PackedBatching(), budget=60).candidates_for_largest(examples, 3) == examples


def test_the_budget_shrinks_by_a_quarter_until_it_fits() -> None:
    tried: list[int] = []
    notes: list[str] = []
    examples = [example(100) for _ in range(90)]
    found = find_fitting_planner(
        PassPlanner(PackedBatching(), 8192),
        examples,
        device_with(2500, tried),
        lambda _level, message: notes.append(message),
    )
    assert found == PassPlanner(found.batching, 2592)
    assert tried == [8100, 6100, 4600, 3400, 2500]
    assert notes[0] == "8,192 positions in one forward pass do not fit on the GPU; trying 6,144"
    assert len(notes) == 4


def test_the_longest_pair_must_fit_and_the_error_recommends_settings() -> None:
    tried: list[int] = []
    with pytest.raises(TrainingError, match=r"The longest pair, 3,000 positions .* a max_length below 1,500") as raised:
        find_fitting_planner(
            PassPlanner(PackedBatching(), 8192), [example(3000), example(10)], device_with(2500, tried), lambda *_: None
        )
    assert tried == [3010] * 4 + [3000]
    assert "gradient_checkpointing, use_4bit" in str(raised.value)


def test_ranks_in_lockstep_try_once_since_the_others_wait_inside_a_pass() -> None:
    tried: list[int] = []
    passes = PassPlanner(PackedBatching(), 8192, ranks_in_lockstep=True)
    with pytest.raises(TrainingError, match=r"30 pairs in one pass, 3,000 positions, .* a smaller batch_size"):
        find_fitting_planner(passes, [example(100) for _ in range(30)], device_with(2500, tried), lambda *_: None)
    assert tried == [3000]


def test_optimizer_state_and_gradients_are_held_during_the_probe_only() -> None:
    trained, frozen = torch.nn.Parameter(torch.ones(6, 2)), torch.nn.Parameter(torch.ones(3), requires_grad=False)
    with torch.profiler.profile(profile_memory=True) as profile:
        with hold_step_memory([trained, frozen], 4_000_000.0, has_gradients=True):
            assert torch.equal(trained.grad, torch.zeros(6, 2))
            assert frozen.grad is None
        assert trained.grad is None
    held = [event.cpu_memory_usage for event in profile.events()]
    assert max(held) == 48_000_000
    assert min(held) == -48_000_000


def test_the_probe_does_not_change_the_training(tiny_model: Path, tmp_path: Path) -> None:
    """With dropout, for which the probe also draws random numbers."""
    config = configure(tiny_model, lora_dropout=0.3)
    recorder = Recorder()
    trained = weights_of(train(config, tmp_path / "a", recorder))
    assert any("largest forward pass has" in note for note in recorder.notes)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    again = weights_of(train(config, tmp_path / "b", Recorder()))
    assert all(map(torch.equal, trained, again))
    assert not torch.equal(before, torch.get_rng_state())
