"""Settings take effect in training: optimizers, schedules, gradient checkpointing; NaN ends a run."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from transformers import TrainerState

from merlina import checkpoints
from merlina.errors import ModelError, TrainingError
from merlina.schemas.training.config import TrainingConfig
from merlina.schemas.training.steps import OptimizerType, SchedulerType
from merlina.step_plan import StepPlan
from merlina.training.device import compute_dtype, training_device
from merlina.training.loop.trainer import PreferenceTrainer
from merlina.training.models.adapters import make_trainable
from merlina.training.models.loading import ModelSpec, load_model
from merlina.training.models.tokens import TokenPair
from tests.training.models import held_out_set

pytestmark = pytest.mark.slow

PAIRS = [TokenPair([5, 6, 7, n], [8, 9, 10, 2], [11, 12, 2], row=n - 19) for n in range(20, 26)]


class Recorder:
    """A Reporter that records what it receives."""

    def __init__(self, stop_after: int | None = None, *, pauses: bool = False) -> None:
        self.steps: list[int] = []
        self.rows: list[tuple[int, dict[str, float]]] = []
        self.saved: list[int] = []
        self.notes: list[str] = []
        self.kept_step: int | None = None
        self._stop_after = stop_after
        self._pauses = pauses

    def progress(self, step: int, total_steps: int) -> None:
        self.steps.append(step)

    def metrics(self, step: int, metrics: dict[str, float], *, awaits_evaluation: bool = False) -> None:
        self.rows.append((step, metrics))

    def checkpoint(self, step: int, path: Path) -> None:
        assert checkpoints.survey(path.parent, checksums=True).newest == path
        self.saved.append(step)

    def model_selected(self, step: int) -> None:
        self.kept_step = step

    def note(self, level: str, message: str) -> None:
        self.notes.append(message)

    def should_stop(self) -> bool:
        return self._stop_after is not None and self.steps[-1] >= self._stop_after

    def is_pausing(self) -> bool:
        return self._pauses


def configure(model: Path, **changes: Any) -> TrainingConfig:
    content = {
        "base_model": str(model), "output_name": "x", "use_4bit": False, "lora_r": 4, "lora_dropout": 0.0,
        "dataset": {"source": {"source_type": "local_file", "file_path": "x"}},
        "batch_size": 2, "gradient_accumulation_steps": 1, "optimizer_type": "adamw_torch", "learning_rate": 1e-3,
        "max_steps": 3, "warmup_ratio": 0.0, "save_steps": 0, "eval_steps": 0,
    }  # fmt: skip
    return TrainingConfig.model_validate({**content, **changes})


def train(config: TrainingConfig, folder: Path, recorder: Recorder, held_out: list[TokenPair] | None = None) -> Any:
    torch.manual_seed(0)
    spec = ModelSpec(config.base_model, config.dtype, config.weight_bits, config.attn_implementation, folder)
    model = make_trainable(load_model(spec), config).model
    trainer = PreferenceTrainer(
        model, config, training=PAIRS, evaluation=held_out_set(held_out), pad_id=0,
        dtype=compute_dtype(config.dtype, training_device()),
        folder=folder / "checkpoints", reporter=recorder, resuming=False,
    )  # fmt: skip
    trainer.run(None)
    return model


@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
@pytest.mark.parametrize("optimizer", get_args(OptimizerType))
def test_every_optimizer_takes_steps_that_lower_the_loss(tiny_model: Path, tmp_path: Path, optimizer: str) -> None:
    recorder = Recorder()
    rate = 1e-3 if "lion" in optimizer else 5e-2 if optimizer == "sgd" else 1e-2
    train(configure(tiny_model, optimizer_type=optimizer, max_steps=6, learning_rate=rate), tmp_path, recorder)
    losses = [metrics["loss"] for _, metrics in recorder.rows]
    assert len(losses) == 6
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("schedule", get_args(SchedulerType))
def test_every_schedule_takes_its_planned_rates(tiny_model: Path, tmp_path: Path, schedule: str) -> None:
    recorder = Recorder()
    config = configure(
        tiny_model, lr_scheduler_type=schedule, max_steps=5, warmup_ratio=0.3, learning_rate=5e-8, save_steps=0.6
    )
    train(config, tmp_path, recorder)
    planned = [StepPlan(config, len(PAIRS)).rate(step) for step in range(1, 6)]
    assert [metrics["learning_rate"] for _, metrics in recorder.rows] == pytest.approx(planned)
    assert planned[:2] == [2.5e-8, 5e-8]


def test_a_run_of_one_step_trains_at_the_full_rate(tiny_model: Path, tmp_path: Path) -> None:
    recorder = Recorder()
    trained = train(configure(tiny_model, warmup_ratio=0.05, max_steps=1), tmp_path, recorder)
    assert [metrics["learning_rate"] for _, metrics in recorder.rows] == [1e-3]
    moved = [weight.abs().max().item() for name, weight in trained.named_parameters() if "lora_B" in name]
    assert moved
    assert moved == pytest.approx([1e-3] * len(moved), rel=0.01)  # Adam's first step is as long as the rate


def test_evaluations_run_before_the_first_step_at_their_fraction_and_after_the_last(
    tiny_model: Path, tmp_path: Path
) -> None:
    recorder = Recorder()
    train(configure(tiny_model, eval_steps=0.4, max_steps=7), tmp_path, recorder, held_out=PAIRS[:3])
    assert [step for step, metrics in recorder.rows if "eval_loss" in metrics] == [0, 3, 6, 7]
    assert recorder.rows[0][1]["eval_reward_accuracy"] in (0, 1 / 3, 2 / 3, 1)


def test_a_stop_ends_after_its_step_with_a_whole_checkpoint(tiny_model: Path, tmp_path: Path) -> None:
    recorder = Recorder(stop_after=2)
    train(configure(tiny_model, max_steps=50), tmp_path, recorder)
    assert recorder.steps[-1] == 2
    assert recorder.saved == [2]


def test_two_checkpoints_are_kept_and_incomplete_ones_are_never_used(tiny_model: Path, tmp_path: Path) -> None:
    recorder = Recorder()
    train(configure(tiny_model, max_steps=6, save_steps=1), tmp_path, recorder)
    folder = tmp_path / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint-5", "checkpoint-6"]
    (folder / "checkpoint-6" / "manifest.json").unlink()
    assert checkpoints.survey(folder).step == 5
    checkpoints.remove_incomplete(folder)
    assert [path.name for path in folder.iterdir()] == ["checkpoint-5"]


def test_gradient_checkpointing_changes_no_weight(tiny_model: Path, tmp_path: Path) -> None:
    plain = train(configure(tiny_model), tmp_path / "a", Recorder())
    recomputed = train(configure(tiny_model, gradient_checkpointing=True), tmp_path / "b", Recorder())
    assert any(
        module.gradient_checkpointing for module in recomputed.modules() if hasattr(module, "gradient_checkpointing")
    )
    for (name, ours), (_, theirs) in zip(plain.named_parameters(), recomputed.named_parameters(), strict=True):
        assert torch.equal(ours, theirs), name


def test_batches_of_another_size_take_the_same_step(tiny_model: Path, tmp_path: Path) -> None:
    shape = {"max_steps": 2, "shuffle_dataset": False}
    wide = train(configure(tiny_model, batch_size=4, **shape), tmp_path / "a", Recorder())
    narrow = train(
        configure(tiny_model, batch_size=1, gradient_accumulation_steps=4, **shape), tmp_path / "b", Recorder()
    )
    for (name, ours), (_, theirs) in zip(wide.named_parameters(), narrow.named_parameters(), strict=True):
        assert torch.allclose(ours, theirs, atol=2e-5), name


@pytest.mark.parametrize("max_grad_norm", [0.0, 0.3])
def test_gradients_that_are_not_finite_are_never_applied(
    tiny_model: Path, tmp_path: Path, max_grad_norm: float
) -> None:
    config = configure(tiny_model, max_grad_norm=max_grad_norm)
    model = make_trainable(load_model(ModelSpec(config.base_model, "auto", None, "auto", tmp_path)), config).model
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    trained[0].register_hook(lambda gradient: gradient * float("nan"))
    trainer = PreferenceTrainer(
        model, config, training=PAIRS, evaluation=(), pad_id=0, dtype=torch.float32,
        folder=tmp_path, reporter=Recorder(), resuming=False,
    )  # fmt: skip
    with pytest.raises(TrainingError, match="gradients became nan in step 1"):
        trainer.train()
    assert all(weight.isfinite().all() for weight in trained)


def test_a_diverged_loss_ends_the_run_naming_the_step(tiny_model: Path, tmp_path: Path) -> None:
    config = configure(tiny_model, optimizer_type="sgd", learning_rate=1.0, max_grad_norm=0, max_steps=50, beta=10.0)
    recorder = Recorder()
    torch.manual_seed(0)
    model = make_trainable(load_model(ModelSpec(config.base_model, "auto", None, "auto", tmp_path)), config).model
    with torch.no_grad():
        # Not in the queries or keys: on some processors, torch's attention returns 0 for a query that is NaN.
        model.get_parameter("base_model.model.model.layers.0.mlp.down_proj.lora_A.default.weight").fill_(float("inf"))
    trainer = PreferenceTrainer(
        model, config, training=PAIRS, evaluation=(), pad_id=0, dtype=torch.float32,
        folder=tmp_path, reporter=recorder, resuming=False,
    )  # fmt: skip
    with pytest.raises(
        TrainingError, match=r"nan in step 1, from 2 of the 2 pairs, among them rows \d, \d: the training has diverged"
    ):
        trainer.run(None)


def test_missing_layers_are_reported_with_existing_ones(tiny_model: Path, tmp_path: Path) -> None:
    config = configure(tiny_model, target_modules=["query", "key"])
    model = load_model(ModelSpec(config.base_model, "auto", None, "auto", tmp_path))
    with pytest.raises(ModelError, match=r"no layers named query, key; it has down_proj, embed_tokens, gate_proj"):
        make_trainable(model, config)
    some = configure(tiny_model, target_modules=["q_proj", "wqkv"])
    assert "no layers named wqkv" in make_trainable(model, some).notes[0]


def test_all_weights_train_without_adapters(tiny_model: Path, tmp_path: Path) -> None:
    recorder = Recorder()
    model = train(configure(tiny_model, use_lora=False, max_steps=4, dtype="bfloat16"), tmp_path, recorder)
    assert all(weight.requires_grad and weight.dtype == torch.float32 for weight in model.parameters())
    assert recorder.rows[-1][1]["loss"] < recorder.rows[0][1]["loss"]


class Clock(Recorder):
    """Records when each step was finished, step 0 being the start, and when each row of metrics was reported."""

    def __init__(self) -> None:
        super().__init__()
        self.done: list[float] = []
        self.reported: list[float] = []

    def progress(self, step: int, total_steps: int) -> None:
        super().progress(step, total_steps)
        self.done.append(time.monotonic())

    def metrics(self, step: int, metrics: dict[str, float], *, awaits_evaluation: bool = False) -> None:
        super().metrics(step, metrics)
        self.reported.append(time.monotonic())


def test_throughput_covers_the_steps_alone(tiny_model: Path, tmp_path: Path) -> None:
    """A step has 30 tokens, its two prompts counted with both answers."""
    clock = Clock()
    train(configure(tiny_model, max_steps=1), tmp_path / "a", clock)
    seconds = 30 / clock.rows[0][1]["tokens_per_second"]
    assert seconds <= clock.reported[0] - clock.done[0]
    between = Clock()
    config = configure(tiny_model, max_steps=4, logging_steps=4, eval_steps=3)
    train(config, tmp_path / "b", between, held_out=PAIRS)
    seconds = 120 / next(row["tokens_per_second"] for _, row in between.rows if "loss" in row)
    assert between.done[3] - between.done[1] <= seconds <= between.reported[-1] - between.done[0]


@pytest.mark.parametrize(
    ("base_model", "complaint"),
    [("/nowhere/model", "/nowhere/model"), ("/nowhere/model.gguf", "model.gguf")],
)
def test_a_missing_model_is_named(tmp_path: Path, base_model: str, complaint: str) -> None:
    with pytest.raises(ModelError, match=complaint):
        load_model(ModelSpec(base_model, "auto", None, "auto", tmp_path))


def test_a_damaged_model_is_named(tiny_model: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(tiny_model, tmp_path / "broken"))
    (broken / "model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0rubbish")
    with pytest.raises(ModelError, match="broken"):
        load_model(ModelSpec(str(broken), "auto", None, "auto", tmp_path))


SWAPPED = [TokenPair(pair.prompt, pair.rejected, pair.chosen) for pair in PAIRS]
_EVERY_STEP = {"eval_steps": 1, "learning_rate": 3e-2, "max_steps": 12, "save_steps": 0}


def resume(config: TrainingConfig, folder: Path, recorder: Recorder, **known: Any) -> tuple[Any, bool]:
    """Resume from the newest checkpoint. Returns the trainer and whether it was stopped."""
    model = make_trainable(load_model(ModelSpec(config.base_model, "auto", None, "auto", folder)), config).model
    trainer = PreferenceTrainer(
        model, config, training=PAIRS, evaluation=held_out_set(SWAPPED), pad_id=0, dtype=torch.float32,
        folder=folder / "checkpoints", reporter=recorder, resuming=True,
    )  # fmt: skip
    return trainer, trainer.run(checkpoints.survey(folder / "checkpoints").newest, **known)


def weights_of(model: Any) -> list[torch.Tensor]:
    return [weight.detach().clone() for weight in model.parameters() if weight.requires_grad]


def test_the_best_evaluated_model_is_the_one_that_is_kept(tiny_model: Path, tmp_path: Path) -> None:
    """Held-out pairs are the training pairs with swapped answers, so that every step makes the evaluation worse."""
    recorder = Recorder()
    config = configure(tiny_model, load_best_at_end="eval_reward_margin", **_EVERY_STEP)
    kept = train(config, tmp_path / "a", recorder, held_out=SWAPPED)
    margins = {step: row["eval_reward_margin"] for step, row in recorder.rows if "eval_reward_margin" in row and step}
    best = max(margins, key=lambda step: margins[step])
    assert best < 12
    assert recorder.kept_step == best
    assert any(f"that of step {best}, the best by eval_reward_margin" in note for note in recorder.notes)
    shorter = {**_EVERY_STEP, "lr_scheduler_type": "constant"}
    whole = configure(tiny_model, load_best_at_end="eval_reward_margin", **shorter)
    again = train(whole.model_copy(update={"max_steps": best}), tmp_path / "b", Recorder(), held_out=SWAPPED)
    long = train(whole, tmp_path / "c", Recorder(), held_out=SWAPPED)
    assert all(map(torch.equal, weights_of(again), weights_of(long)))
    assert not all(
        map(torch.equal, weights_of(kept), weights_of(train(configure(tiny_model), tmp_path / "d", Recorder())))
    )


def test_a_run_that_does_not_improve_ends_early_and_does_not_count_as_stopped(tiny_model: Path, tmp_path: Path) -> None:
    recorder = Recorder()
    torch.manual_seed(0)
    config = configure(tiny_model, early_stopping_patience=2, **_EVERY_STEP)
    model = make_trainable(load_model(ModelSpec(config.base_model, "auto", None, "auto", tmp_path)), config).model
    trainer = PreferenceTrainer(
        model, config, training=PAIRS, evaluation=held_out_set(SWAPPED), pad_id=0, dtype=torch.float32,
        folder=tmp_path / "checkpoints", reporter=recorder, resuming=False,
    )  # fmt: skip
    assert trainer.run(None) is False
    losses = [row["eval_loss"] for step, row in recorder.rows if "eval_loss" in row and step]
    best = losses.index(min(losses))
    assert len(losses) == best + 3 < 12
    assert any(
        note.startswith(f"Ended at step {best + 3} of 12: eval_loss was best at step {best + 1}")
        for note in recorder.notes
    )


def test_a_pause_takes_its_evaluation_to_the_end_and_leaves_the_newest_weights(
    tiny_model: Path, tmp_path: Path
) -> None:
    config = configure(tiny_model, load_best_at_end="eval_reward_margin", **_EVERY_STEP)
    paused, stopped = Recorder(stop_after=5, pauses=True), Recorder(stop_after=5)
    train(config, tmp_path / "a", paused, held_out=SWAPPED)
    train(config, tmp_path / "b", stopped, held_out=SWAPPED)
    assert [step for step, row in paused.rows if "eval_loss" in row] == [0, 1, 2, 3, 4, 5]
    assert [step for step, row in stopped.rows if "eval_loss" in row] == [0, 1, 2, 3, 4]
    assert paused.kept_step is None
    assert stopped.kept_step is not None


def test_early_stopping_continues_to_count_after_a_pause(tiny_model: Path, tmp_path: Path) -> None:
    config = configure(tiny_model, early_stopping_patience=4, **_EVERY_STEP)
    undisturbed = Recorder()
    train(config, tmp_path / "a", undisturbed, held_out=SWAPPED)
    last = undisturbed.steps[-1]
    assert last < 12
    train(config, tmp_path / "b", Recorder(stop_after=last - 1, pauses=True), held_out=SWAPPED)
    resumed = Recorder()
    _, stopped = resume(config, tmp_path / "b", resumed)
    assert stopped is False
    assert resumed.steps[-1] == last


def test_a_resume_makes_an_evaluation_that_a_stop_had_interrupted(tiny_model: Path, tmp_path: Path) -> None:
    config = configure(tiny_model, load_best_at_end="eval_loss", **_EVERY_STEP)
    calm, stopped, resumed = Recorder(), Recorder(stop_after=3), Recorder()
    train(config, tmp_path / "a", calm, held_out=SWAPPED)
    train(config, tmp_path / "b", stopped, held_out=SWAPPED)
    assert [step for step, row in stopped.rows if "eval_loss" in row] == [0, 1, 2]
    resume(config, tmp_path / "b", resumed)
    evaluated = [(step, row["eval_loss"]) for step, row in (*stopped.rows, *resumed.rows) if "eval_loss" in row]
    assert evaluated == [(step, row["eval_loss"]) for step, row in calm.rows if "eval_loss" in row]
    assert resumed.kept_step == calm.kept_step


def test_a_recalled_evaluation_can_be_the_best(tiny_model: Path, tmp_path: Path) -> None:
    """A resume evaluated and crashed before its first checkpoint: the next one gets the result from the event log."""
    config = configure(tiny_model, load_best_at_end="eval_loss", **_EVERY_STEP)
    train(config, tmp_path, Recorder(stop_after=3), held_out=SWAPPED)
    recorder = Recorder()
    trainer, _ = resume(config, tmp_path, recorder, evaluation={"eval_loss": -1.0})
    assert next(step for step, row in recorder.rows if "eval_loss" in row) == 4
    assert (trainer.state.best_global_step, trainer.state.best_metric, recorder.kept_step) == (3, -1.0, 3)


def test_a_lost_best_model_is_forgotten_before_a_resume_evaluates(tiny_model: Path, tmp_path: Path) -> None:
    class InOrder(Recorder):
        """Keeps notes of a lost model and evaluated steps in the order of their reports."""

        def __init__(self) -> None:
            super().__init__()
            self.reports: list[str | int] = []

        def note(self, level: str, message: str) -> None:
            self.reports += ["lost"] * ("is lost" in message)

        def metrics(self, step: int, metrics: dict[str, float], *, awaits_evaluation: bool = False) -> None:
            self.reports += [step] * ("eval_loss" in metrics)

    config = configure(tiny_model, load_best_at_end="eval_loss", **_EVERY_STEP)
    train(config, tmp_path, Recorder(stop_after=3), held_out=SWAPPED)
    folder = tmp_path / "checkpoints"
    state = TrainerState.load_from_json(str(folder / "checkpoint-3" / "trainer_state.json"))
    assert state.best_global_step in (1, 2)
    shutil.rmtree(folder / f"checkpoint-{state.best_global_step}")
    resumed = InOrder()
    resume(config, tmp_path, resumed)
    assert resumed.reports == ["lost", *range(3, 13)]


def test_an_evaluation_made_by_a_resume_can_end_the_run(tiny_model: Path, tmp_path: Path) -> None:
    config = configure(tiny_model, early_stopping_patience=1, **{**_EVERY_STEP, "learning_rate": 1e-30})
    train(config, tmp_path, Recorder(stop_after=2), held_out=SWAPPED)
    recorder = Recorder()
    trainer, stopped = resume(config, tmp_path, recorder)
    assert (trainer.state.global_step, stopped) == (2, False)
    assert [step for step, _ in recorder.rows] == [2]
    assert [note for note in recorder.notes if "ended" in note.lower()] == [
        note for note in recorder.notes if note.startswith("Ended at step 2 of 12: eval_loss was best at step 1 ")
    ]


def test_a_stop_during_a_resumes_evaluation_takes_no_step(tiny_model: Path, tmp_path: Path) -> None:
    config = configure(tiny_model, **_EVERY_STEP)
    train(config, tmp_path, Recorder(stop_after=2), held_out=SWAPPED)
    recorder = Recorder(stop_after=2)
    recorder.steps.append(2)
    trainer, stopped = resume(config, tmp_path, recorder)
    assert (trainer.state.global_step, stopped, recorder.rows, recorder.kept_step) == (2, True, [], 2)


@pytest.mark.parametrize("best", [None, "eval_loss"])
def test_a_run_that_ended_early_takes_no_further_step_after_a_crash(
    tiny_model: Path, tmp_path: Path, best: str | None
) -> None:
    """The process died after training and before the model was saved: a checkpoint of the last step exists."""
    config = configure(tiny_model, early_stopping_patience=2, load_best_at_end=best, **{**_EVERY_STEP, "save_steps": 1})
    undisturbed, resumed = Recorder(), Recorder()
    finished = train(config, tmp_path, undisturbed, held_out=SWAPPED)
    last = undisturbed.steps[-1]
    assert last < 12
    assert checkpoints.survey(tmp_path / "checkpoints").step == last
    trainer, stopped = resume(config, tmp_path, resumed, evaluation=dict(undisturbed.rows)[last])
    assert stopped is False
    assert (resumed.steps, resumed.saved, trainer.state.global_step) == ([], [], last)
    assert resumed.kept_step == undisturbed.kept_step
    assert all(map(torch.equal, weights_of(trainer.model), weights_of(finished)))
    assert any(note.startswith(f"The run had ended at step {last} of 12: eval_loss was best") for note in resumed.notes)
