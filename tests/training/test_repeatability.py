"""The trained weights depend on the training configuration alone, not on evaluations, checkpoints or pauses."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch

from merlina import checkpoints
from merlina.schemas.training.config import TrainingConfig
from merlina.training.loop.trainer import PreferenceTrainer
from merlina.training.models.adapters import make_trainable
from merlina.training.models.loading import ModelSpec, load_model
from tests.training.models import held_out_set
from tests.training.test_trainer import PAIRS, SWAPPED, Recorder, configure

pytestmark = pytest.mark.slow

# Two and a half epochs of three steps each, so that a pause also falls at the boundary of an epoch.
_SHAPE: dict[str, Any] = {"lora_dropout": 0.05, "max_steps": 8, "learning_rate": 1e-2}
_MEASURES = ("loss", "reward_accuracy", "reward_margin", "nll_loss", "grad_norm", "learning_rate")


def train(config: TrainingConfig, folder: Path, recorder: Recorder, *, resume: bool = False, **known: Any) -> Any:
    torch.manual_seed(0)
    model = make_trainable(load_model(ModelSpec(config.base_model, "float32", None, "auto", folder)), config).model
    trainer = PreferenceTrainer(
        model, config, training=PAIRS, evaluation=held_out_set(SWAPPED), pad_id=0, dtype=torch.float32,
        folder=folder / "checkpoints", reporter=recorder, resuming=resume,
    )  # fmt: skip
    # Random numbers that other parts of a run consumed before must not matter.
    torch.rand(7 if resume else 3)
    trainer.run(checkpoints.survey(folder / "checkpoints").newest if resume else None, **known)
    return model


def digest(model: Any) -> str:
    trained = hashlib.blake2b(digest_size=8)
    for weight in model.parameters():
        if weight.requires_grad:
            trained.update(weight.detach().numpy().tobytes())
    return trained.hexdigest()


def test_evaluations_checkpoints_and_rows_change_no_bit_of_the_adapter(tiny_model: Path, tmp_path: Path) -> None:
    ways: list[dict[str, Any]] = [
        *({"eval_steps": steps} for steps in (0, 1)),
        {"save_steps": 3},
        {"logging_steps": 3},
        {"eval_steps": 2, "save_steps": 5, "logging_steps": 4},
    ]
    found = {}
    for number, way in enumerate(ways):
        recorder = Recorder()
        found[str(way)] = digest(train(configure(tiny_model, **_SHAPE, **way), tmp_path / str(number), recorder))
        evaluations = [step for step, row in recorder.rows if "eval_loss" in row]
        assert bool(evaluations) == bool(way.get("eval_steps")), way
    for way, adapter in found.items():
        print(f"{way}: adapter {adapter}")
    assert len(set(found.values())) == 1
    without = digest(train(configure(tiny_model, **{**_SHAPE, "lora_dropout": 0.0}), tmp_path / "none", Recorder()))
    assert without not in found.values()


@pytest.mark.parametrize("pause", [*(pytest.param(step, marks=pytest.mark.long) for step in (2, 3)), 5, 6])
def test_a_pause_changes_no_bit_of_the_adapter_and_no_row(tiny_model: Path, tmp_path: Path, pause: int) -> None:
    """The pause may fall between two rows of metrics, or on the end of an epoch (3 and 6)."""
    config = configure(tiny_model, **_SHAPE, logging_steps=4, eval_steps=3)
    whole = Recorder()
    undisturbed = digest(train(config, tmp_path / "a", whole))
    first, second = Recorder(stop_after=pause, pauses=True), Recorder()
    train(config, tmp_path / "b", first)
    evaluation = next((row for step, row in first.rows if step == pause and "eval_loss" in row), None)
    assert digest(train(config, tmp_path / "b", second, resume=True, evaluation=evaluation)) == undisturbed
    assert second.steps[0] == pause
    assert measured(first) + measured(second) == measured(whole)


def measured(recorder: Recorder) -> list[tuple[int, dict[str, float]]]:
    """Return the rows of training without metrics that depend on the clock, and the rows of evaluation."""
    return [
        (step, {name: value for name, value in row.items() if name in _MEASURES or name.startswith("eval_")})
        for step, row in recorder.rows
    ]
