"""The model that a run saves and uploads has the metrics on its card when it is loaded by the code on the card."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from merlina.run_folder.event_log import EventLog, read_events
from merlina.run_folder.folder import RunFolder
from merlina.run_folder.order import RunOrder
from merlina.schemas.training.config import TrainingConfig
from merlina.training.evaluation import PlainModel, metrics_of
from merlina.training.models.adapters import ignore_known_warnings
from merlina.worker.run.finished_model.merging import Merged, MergeError, save_merged
from merlina.worker.run.finished_model.model_card import merged_metrics_table
from merlina.worker.run.finished_model.saving import save_model
from merlina.worker.run.reporting import EventReporter
from merlina.worker.run.stages import Stages, TrainingData
from merlina.worker.run.stop_requests import ReceivedRequests
from tests.harness import pairs_file, training_config

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")]

_TITLES = {
    "Evaluation loss": "eval_loss",
    "Reward accuracy": "eval_reward_accuracy",
    "Reward margin": "eval_reward_margin",
}
_QUICK: dict[str, Any] = {"max_steps": 4, "eval_steps": 2, "learning_rate": 1e-2, "max_grad_norm": 1.0}


@dataclass
class Run:
    """A run that was completed in this process, by the code of the worker."""

    order: RunOrder
    folder: RunFolder
    tokenizer: Any
    data: TrainingData
    final: dict[str, float]

    @property
    def output(self) -> Path:
        return Path(self.order.output_dir)

    def card(self) -> str:
        return (self.output / "README.md").read_text()

    def merge(self, folder: Path) -> Merged:
        cpu = torch.device("cpu")
        return save_merged(folder, self.order, self.tokenizer, self.data, self.folder.checkpoints_dir, cpu)

    def metrics(self, model: Any) -> dict[str, float]:
        return metrics_of(PlainModel(model), self.data.evaluation, self.order.config, self.folder.checkpoints_dir)


class StopAt(EventReporter):
    """Requests a stop after a step."""

    stop_at: int | None = None
    step = 0

    def progress(self, step: int, total_steps: int) -> None:
        self.step = step
        super().progress(step, total_steps)

    def should_stop(self) -> bool:
        return self.stop_at is not None and self.step >= self.stop_at


def ended_run(base: Path, folder: Path, *, stop_at: int | None = None, trusts: bool = False, **changes: Any) -> Run:
    folder.mkdir(exist_ok=True)
    dataset = pairs_file(folder / "pairs.jsonl")
    content = training_config(base, dataset, "tuned", **{**_QUICK, **changes})
    content["dataset"]["test_size"] = 0.2
    config = TrainingConfig.model_validate(content)
    order = RunOrder(
        job_id="job_1", attempt=1, config=config, dataset_file=str(dataset), output_dir=str(folder / "tuned"),
        trust_remote_code=trusts,
    )  # fmt: skip
    run = RunFolder(folder / "run")
    run.path.mkdir()
    reporter = StopAt(EventLog(run.events_file), ReceivedRequests(folder / "stop", folder / "pause"))
    reporter.stop_at = stop_at
    stages = Stages(run, order, reporter)
    loaded = stages.load_model()
    data = stages.load_data(loaded)
    trained = stages.train(loaded, data)
    final_metrics, was_stopped = reporter.final_metrics(), stages.was_stopped
    save_model(
        trained, loaded.tokenizer, order, data, final_metrics, reporter, stages.last_step, was_stopped=was_stopped
    )  # fmt: skip
    return Run(order, run, loaded.tokenizer, data, reporter.final_metrics())


def loaded_by_its_code(card: str, address: str, place: Path) -> Any:
    """Return the model that the card's code loads, with `place` instead of the address on the card."""
    code = card.split("```python\n")[1].split("```")[0].replace(repr(address), repr(str(place)))
    names: dict[str, Any] = {}
    with ignore_known_warnings():
        exec(code, names)
    for module in names["model"].modules():
        # For inference, bitsandbytes repacks 4-bit weights on processors with AVX512-BF16, which fails for layers as
        # small as those of the tiny model.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return names["model"]


def table(card: str, column: str) -> dict[str, float]:
    """Return the metrics in one column of the card."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in card.splitlines() if line.startswith("|")]
    head = next(row for row in rows if column in row)
    place = head.index(column)
    return {_TITLES[row[0]]: float(row[place]) for row in rows if row[0] in _TITLES}


def assert_same_metrics(shown: dict[str, float], measured: dict[str, float], tolerance: float = 2e-3) -> None:
    assert shown
    for name, value in shown.items():
        assert value == pytest.approx(measured[name], abs=tolerance, rel=tolerance), (name, shown, measured)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"training_mode": "dpo", "load_best_at_end": "eval_reward_margin"},
        {"use_lora": False, "learning_rate": 1e-3},
        {"modules_to_save": ["lm_head"], "use_rslora": True, "training_mode": "dpo", "ld_alpha": 0.5},
        {"use_dora": True, "training_mode": "dpo", "loss_type": "apo_zero", "nll_weight": 0.5},
        pytest.param({"use_dora": True, "use_4bit": True}, marks=pytest.mark.long),
        pytest.param({"modules_to_save": ["lm_head"], "use_4bit": True}, marks=pytest.mark.long),
        pytest.param({"use_4bit": True}, marks=pytest.mark.long),
        pytest.param({"use_8bit": True, "training_mode": "kto"}, marks=pytest.mark.long),
        pytest.param({"dtype": "bfloat16"}, marks=pytest.mark.long),
    ],
)
def test_the_metrics_on_the_card_are_those_of_the_model_that_its_code_loads(
    tiny_model: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    run = ended_run(tiny_model, tmp_path / "run", **changes)
    card = run.card()
    measured = run.metrics(loaded_by_its_code(card, "unused", tmp_path))
    shown = table(card, "After")
    print(f"{changes}: card {shown}, loaded by its code { ({name: round(measured[name], 4) for name in shown}) }")
    assert_same_metrics(shown, measured, 2e-2 if changes.get("dtype") else 2e-3)
    assert run.final["final_eval_loss"] == pytest.approx(shown["eval_loss"], rel=1e-3)
    held = "4-bit NF4" if changes.get("use_4bit") else "8-bit integers" if changes.get("use_8bit") else "float32"
    assert f"with weights in {changes.get('dtype', held)}" in card


def test_the_column_after_shows_the_best_model_if_that_is_saved(tiny_model: Path, tmp_path: Path) -> None:
    """At this high learning rate, the last model is far worse than the best one."""
    shape = {"learning_rate": 0.3, "max_steps": 6, "eval_steps": 1, "max_grad_norm": 0.0}
    run = ended_run(tiny_model, tmp_path / "run", load_best_at_end="eval_loss", optimizer_type="sgd", **shape)
    events = [event for event in read_events(run.folder.events_file)[0] if event.type == "metrics"]
    losses = {event.step: event.metrics["eval_loss"] for event in events if "eval_loss" in event.metrics and event.step}
    best = min(losses, key=lambda step: losses[step])
    assert run.final["kept_step"] == best
    assert run.final["final_eval_loss"] == losses[best]
    assert f"the saved model is that of step {best}." in run.card()
    assert_same_metrics(table(run.card(), "After"), run.metrics(loaded_by_its_code(run.card(), "unused", tmp_path)))


def test_a_stop_between_evaluations_shows_no_metrics_of_another_step(tiny_model: Path, tmp_path: Path) -> None:
    run = ended_run(tiny_model, tmp_path / "run", stop_at=3, max_steps=8)
    assert run.final["kept_step"] == 3
    assert not any(name.startswith("final_eval") for name in run.final)
    assert "stopped at step 3, before the saved model was evaluated" in run.card()
    at_one = ended_run(tiny_model, tmp_path / "other", stop_at=4, max_steps=8, load_best_at_end="eval_loss")
    kept = at_one.final["kept_step"]
    assert kept in (2, 4)
    assert_same_metrics(table(at_one.card(), "After"), at_one.metrics(loaded_by_its_code(at_one.card(), "", tmp_path)))


@pytest.mark.parametrize(
    ("targets", "changes"),
    [
        (["lm_head", "q_proj"], {}),
        pytest.param(["embed_tokens", "q_proj"], {}, marks=pytest.mark.long),
        pytest.param(["lm_head", "embed_tokens"], {"training_mode": "dpo"}, marks=pytest.mark.long),
        (["lm_head", "q_proj"], {"use_4bit": True}),
        (["q_proj", "v_proj"], {}),
    ],
)
def test_merging_changes_only_adapted_layers_although_embeddings_are_tied(
    tiny_model: Path, tmp_path: Path, targets: list[str], changes: dict[str, Any]
) -> None:
    """The base model's embeddings are tied to the output head: both are one matrix."""
    run = ended_run(tiny_model, tmp_path / "run", target_modules=targets, **{"learning_rate": 5e-2, **changes})
    merged = run.merge(tmp_path / "merged")
    adapter = run.metrics(loaded_by_its_code(run.card(), "unused", tmp_path))
    print(
        f"{targets} {changes}: held-out loss {adapter['eval_loss']:.4f} with the adapter, "
        f"{merged.metrics['eval_loss']:.4f} merged; largest difference {merged.largest:.2g} nat per token"
    )
    if not changes.get("use_4bit"):
        assert merged.dtype == torch.float32
        assert merged.metrics["eval_loss"] == pytest.approx(adapter["eval_loss"], rel=1e-4)
        assert merged.largest < 1e-4
        assert merged.rounding == 0
    is_tied = json.loads((tmp_path / "merged" / "config.json").read_text())["tie_word_embeddings"]
    with safe_open(tmp_path / "merged" / "model.safetensors", framework="pt") as file:
        names = set(file.keys())
    assert is_tied == (targets == ["q_proj", "v_proj"]) == ("lm_head.weight" not in names)
    assert "model.embed_tokens.weight" in names


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "changes", [{"modules_to_save": ["lm_head", "embed_tokens"]}, {"use_dora": True}, {"use_rslora": True}]
)
def test_variants_of_adapters_are_merged_in_float32(
    tiny_model: Path, tmp_path: Path, changes: dict[str, Any], dtype: str
) -> None:
    settings = {"dtype": dtype, "merge_dtype": "float32", "learning_rate": 1e-2, "training_mode": "dpo"}
    run = ended_run(tiny_model, tmp_path / "run", **settings, **changes)
    merged = run.merge(tmp_path / "merged")
    adapter = run.metrics(loaded_by_its_code(run.card(), "unused", tmp_path))
    assert merged.metrics["eval_loss"] == pytest.approx(adapter["eval_loss"], rel=1e-4 if dtype == "float32" else 2e-2)
    assert merged.rounding == 0
    if "modules_to_save" in changes:
        trained = load_file(tmp_path / "run" / "tuned" / "adapter_model.safetensors")
        saved = load_file(tmp_path / "merged" / "model.safetensors")
        for name in ("lm_head", "model.embed_tokens"):
            assert torch.equal(trained[f"base_model.model.{name}.weight"], saved[f"{name}.weight"])


def test_the_rounding_of_a_small_update_is_measured_and_float32_keeps_it(tiny_model: Path, tmp_path: Path) -> None:
    """The default learning rate changes weights by less than the resolution of bfloat16."""
    found = {}
    for name in ("bfloat16", "float32"):
        run = ended_run(
            tiny_model, tmp_path / name, training_mode="dpo", learning_rate=5e-6, dtype="float32", max_steps=8,
            merge_dtype=name,
        )  # fmt: skip
        merged = found[name] = run.merge(tmp_path / f"{name}-merged")
        margin = run.final["final_eval_reward_margin"]
        print(
            f"{name}: rounding {merged.rounding:.2%} of the update, margin {margin:.3g} with the adapter and "
            f"{merged.metrics['eval_reward_margin']:.3g} merged, {merged.mean:.2g} nat per token on average"
        )
        section = merged_metrics_table(run.final, run.data, merged, "float32")
        assert_same_metrics(table(section, f"This model ({name})"), merged.metrics, 1e-3)
        assert table(section, "Adapter (float32)")["eval_loss"] == pytest.approx(run.final["final_eval_loss"], rel=1e-3)
        assert ("rounding to bfloat16 changed the weights by" in section) == (name == "bfloat16")
    assert found["bfloat16"].rounding > 0.5
    assert found["float32"].rounding < 1e-4
    assert found["float32"].metrics["eval_reward_margin"] == pytest.approx(margin, rel=1e-2)


_ALWAYS_TIED = """
from transformers import LlamaForCausalLM

class AlwaysTied(LlamaForCausalLM):
    def tie_weights(self, *args, **kwargs):
        super().tie_weights(*args, **kwargs)
        self.lm_head.weight = self.model.embed_tokens.weight
"""


def test_a_merged_model_that_changes_when_it_is_reloaded_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    """The model's code ties the embeddings in spite of the configuration."""
    base = tmp_path / "base"
    base.mkdir()
    for file in tiny_model.iterdir():
        (base / file.name).write_bytes(file.read_bytes())
    config = json.loads((base / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "always_tied.AlwaysTied"}
    config["architectures"] = ["AlwaysTied"]
    (base / "config.json").write_text(json.dumps(config))
    (base / "always_tied.py").write_text(_ALWAYS_TIED)
    run = ended_run(base, tmp_path / "run", trusts=True, target_modules=["lm_head"], learning_rate=5e-2)
    with pytest.raises(MergeError, match=r"differ from the adapter's by up to [\d.]+ per token .* more than 0.001"):
        run.merge(tmp_path / "merged")
