from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from merlina.errors import TrainingError
from merlina.training.packing import SharedPrompt, cut
from merlina.training.probe import fitting_budget, largest_pack
from tests.training.test_loop import Recorder, configure, train, weights_of


def unit(positions: int) -> SharedPrompt:
    return SharedPrompt([1], ([2] * positions, [3]))


def device_of(room: int, tried: list[int]) -> Callable[[Sequence[SharedPrompt]], None]:
    """What a card does that has room for so many positions."""

    def run(units: Sequence[SharedPrompt]) -> None:
        tried.append(sum(one.positions for one in units))
        if tried[-1] > room:
            raise torch.OutOfMemoryError("CUDA out of memory")

    return run


@given(sizes=st.lists(st.integers(2, 60), min_size=1, max_size=30), budget=st.integers(2, 100))
def test_what_is_tried_is_as_large_as_the_longest_pair_and_any_pack_of_all(sizes: list[int], budget: int) -> None:
    units = [unit(size) for size in sizes]
    largest = sum(one.positions for one in largest_pack(units, budget))
    assert max(sizes) <= largest <= max([budget, *sizes])
    assert all(sum(sizes[index] for index in pack) <= largest for pack in cut(units, budget))


def test_the_budget_is_halved_until_it_fits_and_each_try_is_told() -> None:
    tried: list[int] = []
    told: list[str] = []
    units = [unit(100) for _ in range(90)]
    found = fitting_budget(units, 8192, device_of(2500, tried), lambda _level, message: told.append(message))
    assert found == 2048
    assert tried == [8100, 4000, 2000]
    assert told[0] == "No room on the GPU for 8,192 tokens in one forward pass; trying 4,096"
    assert len(told) == 2


def test_the_longest_pair_is_the_least_that_must_fit_and_the_error_says_what_helps() -> None:
    tried: list[int] = []
    with pytest.raises(TrainingError, match=r"The longest pair, 3,000 tokens .* a max_length below 1,500") as raised:
        fitting_budget([unit(3000), unit(10)], 8192, device_of(2500, tried), lambda *_: None)
    assert tried == [3010, 3010, 3000]
    assert "gradient_checkpointing, use_4bit" in str(raised.value)


def test_the_try_leaves_no_trace_in_the_training(tiny_model: Path, tmp_path: Path) -> None:
    """With dropout, whose random numbers the try draws too: what follows is as if it hadn't been."""
    config = configure(tiny_model, lora_dropout=0.3)
    recorder = Recorder()
    trained = weights_of(train(config, tmp_path / "a", recorder))
    assert any("tokens in its largest forward pass" in note for note in recorder.notes)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    again = weights_of(train(config, tmp_path / "b", Recorder()))
    assert all(map(torch.equal, trained, again))
    assert not torch.equal(before, torch.get_rng_state())
