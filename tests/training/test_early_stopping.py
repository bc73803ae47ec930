"""The best evaluation of a resumed run: it counts only if its model can still be loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import TrainerControl, TrainerState

from merlina.training.loop.early_stopping import EarlyStopping
from tests.training.test_trainer import configure

pytestmark = pytest.mark.slow


def resumed_state() -> TrainerState:
    """Return a state at step 3 whose best evaluation was at step 1, with a checkpoint that is not on disk."""
    return TrainerState(global_step=3, max_steps=12, eval_steps=1, best_metric=1.0, best_global_step=1)


@pytest.fixture
def notes() -> list[str]:
    return []


@pytest.fixture
def stopping(tmp_path: Path, notes: list[str]) -> EarlyStopping:
    config = configure(tmp_path, load_best_at_end="eval_loss", eval_steps=1, early_stopping_patience=9)
    return EarlyStopping(config, tmp_path, lambda _level, message: notes.append(message))


def test_a_recalled_evaluation_replaces_a_lost_best_one(stopping: EarlyStopping, notes: list[str]) -> None:
    state = resumed_state()
    stopping.recall({"eval_loss": 2.0})
    stopping.on_train_begin(None, state, TrainerControl())
    assert (state.best_metric, state.best_global_step) == (2.0, 3)
    assert len(notes) == 1


def test_an_evaluation_at_a_resume_replaces_a_lost_best_one(stopping: EarlyStopping, notes: list[str]) -> None:
    state = resumed_state()
    stopping.forget_lost_best(state)
    stopping.on_evaluate(None, state, TrainerControl(), metrics={"eval_loss": 2.0})
    assert (state.best_metric, state.best_global_step) == (2.0, 3)
    # The Trainer loads the checkpoint's state again before its first step.
    stopping.recall({"eval_loss": 2.0})
    assert not stopping.had_ended_early(state)
    loaded_again = resumed_state()
    stopping.on_train_begin(None, loaded_again, TrainerControl())
    assert (loaded_again.best_metric, loaded_again.best_global_step) == (2.0, 3)
    assert len(notes) == 1
    assert notes[0].startswith("eval_loss was best at step 1 (1.0000), but that model is lost (")
