"""Every choice of every field of a TrainingConfig changes what a run does, or is listed here with the reason why not.

Each run goes through the worker's own stages, from rows to a trained model, on a tiny model and 12 pairs. One choice of
each field is always tried, all others with `--long`.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import typing
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import pytest
from pydantic import BaseModel, ValidationError

from merlina.run_folder.event_log import EventLog, read_events
from merlina.run_folder.folder import RunFolder
from merlina.run_folder.order import RunOrder
from merlina.schemas.datasets.config import RowFormat
from merlina.schemas.training.config import TrainingConfig
from merlina.schemas.training.method import LossType
from tests.tiny import build_tiny_model

pytestmark = pytest.mark.slow

ROWS: list[dict[str, Any]] = [
    {
        "prompt": f"What is {number} plus {number}?",
        "chosen": f"It is {2 * number}. " * (1 + number % 3),
        "rejected": "Nobody knows.",
        "reasoning": "Count the fingers.",
        "system": "You add.",
        "other": f"Why is it {number}?",
    }
    for number in range(12)
]
RANKED = [
    {"prompt": row["prompt"], "answers": [{"answer": f"{rank} fingers.", "rank": rank} for rank in (1, 2, 3)]}
    for row in ROWS
]
LABELED = [
    {
        "prompt": row["prompt"],
        "completion": row["chosen"],
        "other": row["other"],
        "label": number % 2 == 0,
        "liked": number % 3 == 0,
    }
    for number, row in enumerate(ROWS)
]
TRANSCRIPTS = [{**row, "prompt": f"\n\nHuman: {row['prompt']}\n\nAssistant:"} for row in ROWS]
BASE: dict[str, Any] = {
    "output_name": "x", "use_4bit": False, "lora_r": 4, "lora_dropout": 0.0, "batch_size": 4,
    "gradient_accumulation_steps": 1, "optimizer_type": "adamw_torch", "learning_rate": 1e-3, "num_epochs": 1,
    "warmup_ratio": 0.0, "save_steps": 0, "eval_steps": 0, "max_length": 128, "max_prompt_length": 100, "seed": 7,
}  # fmt: skip
DATASET: dict[str, Any] = {"test_size": 0, "format": {"format_type": "chatml"}}


@dataclass
class Case:
    """Changes of a configuration; the run is compared with one that has only those in `beside`."""

    changes: dict[str, Any]
    beside: dict[str, Any] = field(default_factory=dict)
    changed: bool = True

    @property
    def name(self) -> str:
        return ",".join(f"{key}={value}" for key, value in self.changes.items())[:70]


EVALUATED = {"eval_steps": 1, "dataset.test_size": 0.25, "learning_rate": 0.9, "num_epochs": 3}
SHORT = {"max_length": 52, "max_prompt_length": 30}  # some pairs are longer
CASES = [
    *(Case({"training_mode": mode}) for mode in ("dpo", "simpo", "cpo", "ipo", "kto", "sft")),
    Case({"beta": 0.5}),
    Case({"simpo_gamma": 3.0}, {"training_mode": "simpo"}),
    Case({"desirable_weight": 2.0}, {"training_mode": "kto"}),
    Case({"undesirable_weight": 2.0}, {"training_mode": "kto"}),
    *(
        Case({"loss_type": name}, {"training_mode": "dpo", "label_smoothing": 0.1, "num_epochs": 2})
        for name in get_args(LossType)
        if name != "sigmoid"
    ),
    Case({"loss_type": "sigmoid"}, {"training_mode": "dpo", "loss_type": "hinge"}),
    Case({"loss_weights": [0.5, 2.0]}, {"training_mode": "dpo", "loss_type": ["sigmoid", "hinge"]}),
    *(Case({"label_smoothing": 0.1}, {"training_mode": mode}) for mode in ("dpo", "simpo", "cpo")),
    *(Case({"nll_weight": 1.0}, {"training_mode": mode}) for mode in ("dpo", "ipo", "simpo")),
    Case({"dpop_weight": 5.0}, {"training_mode": "dpo", "num_epochs": 4, "learning_rate": 0.1}),
    Case({"length_normalize": True}, {"training_mode": "dpo", "num_epochs": 2}),
    Case({"ld_alpha": 0.5}, {"training_mode": "dpo", "num_epochs": 2}),
    Case({"ld_alpha": 1.0}, {"training_mode": "dpo"}, changed=False),
    Case({"neftune_noise_alpha": 5.0}),
    Case({"use_lora": False}),
    Case({"lora_r": 8}),
    Case({"lora_alpha": 64}),
    Case({"use_rslora": True}),
    Case({"use_dora": True}),
    Case({"lora_dropout": 0.5}),
    Case({"disable_dropout": False}, {"base_model": "dropping"}),
    Case({"target_modules": ["q_proj"]}),
    Case({"target_modules": "all-linear"}, {"target_modules": ["q_proj"]}),
    Case({"modules_to_save": ["embed_tokens", "lm_head"]}),
    Case({"learning_rate": 2e-3}),
    Case({"num_epochs": 2.0}),
    Case({"max_steps": 1}),
    Case({"batch_size": 2}),
    Case({"gradient_accumulation_steps": 2}),
    # Only their product counts.
    Case({"batch_size": 2, "gradient_accumulation_steps": 2}, changed=False),
    Case({"max_length": 48, "max_prompt_length": 40}, {"max_prompt_length": 40}),
    Case({"seed": 8}),
    Case({"max_grad_norm": 1e-4}, {"optimizer_type": "sgd"}),
    Case({"warmup_ratio": 0.5}),
    Case({"eval_steps": 1}, {"dataset.test_size": 0.25}),
    Case({"early_stopping_patience": 1}, EVALUATED),
    Case({"load_best_at_end": "eval_loss"}, EVALUATED),
    Case({"load_best_at_end": "eval_reward_margin"}, {**EVALUATED, "training_mode": "dpo"}),
    Case({"save_steps": 1}),
    Case({"shuffle_dataset": False}),
    Case({"weight_decay": 0.5}),
    *(Case({"lr_scheduler_type": name}) for name in ("linear", "constant", "cosine_with_restarts", "polynomial")),
    Case({"lr_scheduler_type": "constant_with_warmup"}),
    Case({"lr_scheduler_type": "constant_with_warmup"}, {"lr_scheduler_type": "constant"}, changed=False),
    Case({"warmup_ratio": 0.5}, {"lr_scheduler_type": "constant"}),
    Case({"lr_scheduler_cycles": 3}, {"lr_scheduler_type": "cosine_with_restarts", "batch_size": 2}),
    Case({"lr_scheduler_power": 1.0}, {"lr_scheduler_type": "polynomial"}),
    Case({"logging_steps": 2}),
    *(Case({"optimizer_type": name}) for name in ("adamw_8bit", "lion_8bit", "adafactor", "sgd")),
    *(Case({"optimizer_type": name}) for name in ("paged_adamw_8bit", "paged_lion_8bit", "paged_adamw_32bit")),
    Case({"adam_beta1": 0.5}),
    Case({"adam_beta2": 0.5}),
    Case({"adam_epsilon": 1e-2}),
    Case({"use_4bit": True}),
    Case({"use_8bit": True}),
    Case({"dtype": "bfloat16"}),
    Case({"dtype": "float32"}, changed=False),  # what auto is on a CPU
    Case({"base_model": "other"}),
    *(Case({"dataset.format": {"format_type": name}}) for name in ("llama3", "mistral", "qwen3")),
    # The tiny model's own template is ChatML.
    Case({"dataset.format": {"format_type": "tokenizer"}}, {"dataset.format": {"format_type": "llama3"}}),
    Case({"dataset.format": {"format_type": "custom", "custom_templates": {"user_prefix": "Q: "}}}),
    *(
        Case(
            {"dataset.format": {"format_type": "custom", "custom_templates": {"user_prefix": "Q: ", name: "<x>"}}},
            {"dataset.format": {"format_type": "custom", "custom_templates": {"user_prefix": "Q: "}}},
        )
        for name in ("system_prefix", "system_suffix", "user_suffix", "assistant_prefix", "assistant_suffix")
    ),
    Case(
        {"dataset.format": {"format_type": "qwen3", "enable_thinking": False}},
        {"dataset.format": {"format_type": "qwen3"}},
    ),
    Case({"dataset.format": {"format_type": "chatml", "system_as_user": True}}),
    # The format raw takes a single message.
    Case(
        {"dataset.format": {"format_type": "raw", "system_as_user": True}},
        {"dataset.format": {"format_type": "chatml", "system_as_user": True}},
    ),
    Case({"dataset.strip": True}),
    Case({"dataset.drop_overlong": True, **SHORT}, SHORT),
    Case({"dataset.test_size": 0.25}),
    Case({"dataset.max_samples": 5}),
    *(
        Case({"dataset.column_mapping": {"other": column}}, {"dataset.format": {"format_type": "qwen3"}})
        for column in ("prompt", "chosen", "rejected", "system", "reasoning")
    ),
    *(
        Case({"dataset.column_mapping": mapping}, {"dataset.source": "labeled", "training_mode": "kto"})
        for mapping in ({"other": "completion"}, {"liked": "label"})
    ),
    Case({"dataset.source": "half"}),
    Case({"dataset.source": "ranked", "dataset.pairs_per_row": "all"}, {"dataset.source": "ranked"}),
    Case({"dataset.source": "transcripts", "dataset.row_format": "standard"}, {"dataset.source": "transcripts"}),
]  # fmt: skip

# No effect on a CPU's training, with what holds it instead.
ELSEWHERE = {
    "max_prompt_length": "cuts prompts of pairs that are longer than max_length; tests/training/test_tokens.py",
    "output_name": "names the folder; tests/worker/test_saving.py",
    "gradient_checkpointing": "must change no weight; tests/training/test_trainer.py",
    "gpu_ids": "needs GPUs; tests/worker/test_multi_gpu.py, tests/jobs/test_scheduler.py",
    "push_to_hub": "after training; tests/system/test_hub.py",
    "merge_lora_before_upload": "after training; tests/system/test_hub.py",
    "merge_dtype": "after training; tests/worker/test_merging.py",
    "hf_hub_private": "after training; tests/worker/test_publishing.py",
    "hf_token": "opens what is private; tests/system/test_hub.py",
    **dict.fromkeys(
        ("use_wandb", "wandb_key", "wandb_project", "wandb_run_name", "wandb_tags", "wandb_notes"),
        "metrics are sent to another service; tests/system/test_readiness.py",
    ),
    **dict.fromkeys(
        ("dataset.sources", "dataset.source_order", "dataset.eval_source", "dataset.eval_sources"),
        "several sources of rows; tests/worker/test_sources.py",
    ),
    "dataset.model_name": "only previews use it; tests/api/test_datasets.py",
    "dataset.training_mode": "accepted from older clients, the run's own counts; tests/schemas/test_training.py",
    **dict.fromkeys(
        ("dataset.default_system", "dataset.drop_duplicates", "dataset.drop_identical_answers"),
        "decides which rows and messages there are; tests/data/test_cleaning.py",
    ),
    **{
        f"dataset.source.{name}": "another way to the same rows; tests/data"
        for name in (
            *("source_type", "repo_id", "config_name", "revision", "data_files", "split"),
            *("file_format", "encoding", "dataset_id", "url"),
        )
    },
}
CHOICES_ELSEWHERE = {
    **{
        ("dataset.row_format", name): "gives the same pairs as if detected; tests/data/test_row_formats.py"
        for name in get_args(RowFormat)
        if name != "standard"
    },
    ("optimizer_type", "adamw_torch_fused"): "the same steps by another kernel; tests/training/test_trainer.py",
    ("attn_implementation", "eager"): "the same attention by another kernel; tests/training/test_attention.py",
    ("attn_implementation", "sdpa"): "the same attention by another kernel; tests/training/test_attention.py",
    (
        "attn_implementation",
        "flash_attention_2",
    ): "needs a GPU, which is checked before the run; tests/preflight/test_machine.py",
    ("dtype", "float16"): "refused without a GPU; tests/preflight/test_machine.py",
}


class NoRequests:
    def is_set(self) -> bool:
        return False

    def reason_to_pause(self) -> str | None:
        return None


class Runs:
    """Runs by configuration; each is carried out once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._done: dict[str, str] = {}
        self._models = {"plain": build_tiny_model(folder / "plain")}
        self._models["other"] = build_tiny_model(folder / "other", layers=1)
        self._models["dropping"] = Path(shutil.copytree(folder / "plain", folder / "dropping"))
        settings = json.loads((folder / "dropping" / "config.json").read_text())
        (folder / "dropping" / "config.json").write_text(json.dumps({**settings, "attention_dropout": 0.5}))
        files = {"all": ROWS, "half": ROWS[:6], "ranked": RANKED, "transcripts": TRANSCRIPTS, "labeled": LABELED}
        for name, rows in files.items():
            (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def configuration(self, changes: dict[str, Any]) -> TrainingConfig:
        outer = {name: value for name, value in changes.items() if not name.startswith("dataset.")}
        inner = {name.removeprefix("dataset."): value for name, value in changes.items() if name.startswith("dataset.")}
        file = self._folder / f"{inner.pop('source', 'all')}.jsonl"
        dataset = {**DATASET, "source": {"source_type": "local_file", "file_path": str(file)}, **inner}
        model = str(self._models[outer.pop("base_model", "plain")])
        return TrainingConfig.model_validate({**BASE, **outer, "base_model": model, "dataset": dataset})

    def outcome(self, changes: dict[str, Any]) -> str:
        """Return a digest of the weights, the steps of checkpoints, and the metrics except those of time and memory."""
        config = self.configuration(changes)
        key = config.model_dump_json()
        if key not in self._done:
            self._done[key] = self._run(config)
        return self._done[key]

    def _run(self, config: TrainingConfig) -> str:
        from merlina.worker.run.reporting import EventReporter
        from merlina.worker.run.stages import Stages

        folder = RunFolder(self._folder / f"run-{len(self._done)}")
        folder.path.mkdir()
        order = RunOrder(
            job_id="job", attempt=1, config=config, output_dir=str(self._folder / "model"),
            dataset_file=config.dataset.source.file_path,
        )  # fmt: skip
        stages = Stages(folder, order, EventReporter(EventLog(folder.events_file), NoRequests()))
        loaded = stages.load_model()
        trained = stages.train(loaded, stages.load_data(loaded))
        digest = hashlib.sha256()
        for name, weight in trained.named_parameters():
            if weight.requires_grad:
                digest.update(name.encode())
                digest.update(weight.detach().contiguous().view(-1).numpy().tobytes())
        for event in read_events(folder.events_file)[0]:
            if event.type == "checkpoint":
                digest.update(f"checkpoint {event.step}".encode())
            if event.type == "metrics":
                metrics = {k: v for k, v in event.metrics.items() if k not in ("tokens_per_second", "memory_gib")}
                digest.update(json.dumps([event.step, metrics], sort_keys=True).encode())
        shutil.rmtree(folder.path)
        return digest.hexdigest()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield Runs(tmp_path_factory.mktemp("choices"))
    torch.set_num_threads(threads)


def _parameters() -> Iterator[Any]:
    """Mark all cases but the first one of the same fields as long."""
    seen = set()
    for case in CASES:
        fields = tuple(case.changes)
        yield pytest.param(case, id=case.name, marks=[pytest.mark.long] * (fields in seen))
        seen.add(fields)


@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
@pytest.mark.parametrize("case", list(_parameters()))
def test_a_choice_changes_training(runs: Runs, case: Case) -> None:
    before, after = runs.outcome(case.beside), runs.outcome({**case.beside, **case.changes})
    assert (before != after) == case.changed


def test_every_choice_of_every_field_is_tried_or_listed(runs: Runs) -> None:
    tried: dict[str, set[Any]] = {}
    for case in CASES:
        for name, value in case.changes.items():
            for path, leaf in _leaves(name, value):
                if path == "dataset.column_mapping":
                    tried.setdefault(path, set()).update(map(json.dumps, leaf.values()))
                tried.setdefault(path, set()).add(json.dumps(leaf))
    tried["dataset.source.file_path"] = {"half"}
    fields = dict(_fields(TrainingConfig))
    # Each field is tried, or all of its choices are listed.
    listed = set(ELSEWHERE) | {name for name, _ in CHOICES_ELSEWHERE}
    assert set(fields) - set(tried) - listed == set()
    assert (set(tried) | listed) - set(fields) == set()
    default = runs.configuration({})
    for name, annotation in fields.items():
        if name in ELSEWHERE:
            continue
        for choice in _choices(annotation):
            is_default = choice == _value(default, name)
            is_tried = json.dumps(choice) in tried.get(name, ())
            assert is_default or is_tried or (name, choice) in CHOICES_ELSEWHERE, (name, choice)


def test_choices_outside_their_range_are_refused(runs: Runs) -> None:
    for changes in ({"lr_scheduler_cycles": 1}, {"lr_scheduler_power": 0.0}, {"target_modules": "q_proj"}):
        with pytest.raises(ValidationError):
            runs.configuration(changes)


def _leaves(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and name in ("dataset.format", "dataset.format.custom_templates"):
        for inner, leaf in value.items():
            yield from _leaves(f"{name}.{inner}", leaf)
    elif name != "dataset.source":
        yield name, value


def _fields(model: type[BaseModel], above: str = "") -> Iterator[tuple[str, Any]]:
    for name, field_ in model.model_fields.items():
        # Several sources have the same fields as the only one.
        inner = None if name in ("sources", "eval_source", "eval_sources") else _model_in(field_.annotation)
        if inner is None:
            yield above + name, field_.annotation
        else:
            yield from _fields(inner, f"{above}{name}.")


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in typing.get_args(annotation) if (found := _model_in(part))), None)


def _choices(annotation: Any) -> list[Any]:
    if annotation is bool:
        return [False, True]
    if typing.get_origin(annotation) is Literal:
        return list(typing.get_args(annotation))
    return [choice for part in typing.get_args(annotation) for choice in _choices(part)]


def _value(config: Any, path: str) -> Any:
    for part in path.split("."):
        config = getattr(config, part, None)
    return config
