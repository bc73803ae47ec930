"""A worker on a run folder, without a server: its event log, its model, its errors."""

from __future__ import annotations

import json
import re
import shutil
import stat
from pathlib import Path
from typing import Any

import pytest

from merlina.executors.local import LocalExecutor
from merlina.run_folder.event_log import EventLog, read_events
from merlina.run_folder.folder import RunFolder
from merlina.run_folder.order import RunOrder
from merlina.schemas.training.config import TrainingConfig
from merlina.worker.run.run import run as carry_out
from merlina.worker.run.stop_requests import ReceivedRequests
from tests.harness import pairs_file, training_config, until
from tests.tiny import build_tiny_model

pytestmark = pytest.mark.slow


def order_of(folder: Path, base_model: Path, dataset_file: Path, **changes: Any) -> RunOrder:
    config = training_config(base_model, dataset_file, "tuned", **changes)
    return RunOrder(
        job_id="job_1", attempt=1, config=TrainingConfig.model_validate(config), dataset_file=str(dataset_file),
        output_dir=str(folder / "models" / "tuned"),
    )  # fmt: skip


def run_in_own_process(folder: Path, order: RunOrder) -> RunFolder:
    """Run an order to its end, as the server does."""
    run = RunFolder(folder / "run")
    executor = LocalExecutor({"hf_token": "hf_very_secret"}, spares=None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        executor.launch(run, order, None)
    until(lambda: not executor.is_alive(run), 120, "the run's end")
    return run


def run_worker(folder: Path, base_model: Path, dataset_file: Path, **changes: Any) -> RunFolder:
    """Run to the end in this process, by the code of the worker, which saves the seconds of its imports."""
    return carry_out_order(folder, order_of(folder, base_model, dataset_file, **changes))


def carry_out_order(folder: Path, order: RunOrder) -> RunFolder:
    """Run an order to its end in this process."""
    run = RunFolder(folder / "run")
    run.path.mkdir()
    run.write_order(order)
    log = EventLog(run.events_file)
    carry_out(run, order, log, ReceivedRequests(run.stop_file, run.pause_file))
    log.close()
    return run


def log_of(run: RunFolder) -> list[Any]:
    events, offset = read_events(run.events_file)
    assert offset == run.events_file.stat().st_size
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert [event.type for event in events].count("ended") == 1
    assert events[-1].type == "ended"
    return events


@pytest.fixture(scope="module")
def finished(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run in 4-bit with the default optimizer, which needs all of bitsandbytes."""
    folder = tmp_path_factory.mktemp("finished")
    dataset = pairs_file(folder / "pairs.jsonl")
    changes = {"max_steps": 4, "use_4bit": True, "optimizer_type": "paged_adamw_8bit"}
    return run_in_own_process(folder, order_of(folder, tiny_model, dataset, **changes))


def test_a_run_passes_through_its_states_and_completes_even_in_4_bit_on_a_cpu(finished: RunFolder) -> None:
    events = log_of(finished)
    assert events[0].type == "started"
    assert [event.state for event in events if event.type == "state"] == [
        "loading_model", "loading_dataset", "training", "saving",
    ]  # fmt: skip
    ended = events[-1]
    assert (ended.state, ended.error) == ("completed", None), finished.log_file.read_text()
    assert any("Only 4 optimizer steps" in event.message for event in events if event.type == "log")
    (adapters,) = [e.message for e in events if e.type == "log" and e.message.startswith("Adapters on ")]
    assert "feed-forward (6 of 6, 4,608 weights), attention (8 of 8, 3,584 weights)" in adapters
    assert "which are 58.7% of the model's parameters; none on embeddings (1 of 1, 40.8% of the model)" in adapters
    assert any("are 4-bit NF4" in event.message for event in events if event.type == "log")
    rows = [event for event in events if event.type == "metrics" and not event.awaits_evaluation]
    assert [event.step for event in rows if "loss" in event.metrics] == [1, 2, 3, 4]
    assert {"final_loss", "final_eval_loss", "initial_eval_loss", "initial_eval_reward_accuracy"} <= set(
        ended.final_metrics
    )


def test_the_code_on_the_card_loads_the_model(finished: RunFolder) -> None:
    model = Path(finished.read_order().output_dir)
    card = (model / "README.md").read_text()
    code = card.split("```python\n")[1].split("```")[0]
    loaded: dict[str, Any] = {}
    exec(code, loaded)
    assert loaded["tokenizer"].chat_template
    assert type(loaded["model"]).__name__ == "PeftModelForCausalLM"
    assert "| Evaluation loss |" in card
    assert stat.S_IMODE((model / "README.md").stat().st_mode) == 0o644


def test_the_configuration_beside_the_model_reproduces_it(finished: RunFolder) -> None:
    order = finished.read_order()
    kept = TrainingConfig.model_validate_json((Path(order.output_dir) / "merlina.json").read_bytes())
    assert kept == order.config


def test_no_token_is_written_anywhere(finished: RunFolder) -> None:
    for path in finished.path.parent.rglob("*"):
        assert not path.is_file() or b"hf_very_secret" not in path.read_bytes(), path


def test_only_the_owner_can_read_a_runs_files(finished: RunFolder) -> None:
    for path in (finished.events_file, finished.order_file):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


@pytest.mark.parametrize(
    ("rows", "changes", "reason"),
    [
        (
            '{"prompt": "a", "chosen": "", "rejected": "b"}\n',
            {},
            "None of the data set's 1 rows can be used: row 1: chosen",
        ),
        (None, {"dtype": "float16"}, "float16 needs a GPU"),
    ],
)
def test_a_failure_is_one_last_event_with_a_reason(
    tiny_model: Path, tmp_path: Path, rows: str | None, changes: dict[str, Any], reason: str
) -> None:
    dataset = pairs_file(tmp_path / "pairs.jsonl")
    if rows is not None:
        dataset.write_text(rows)
    run = run_worker(tmp_path, tiny_model, dataset, **changes)
    ended = log_of(run)[-1]
    assert ended.state == "failed"
    assert reason in ended.error
    assert not (tmp_path / "models").exists()


def test_a_token_that_the_model_does_not_have_is_named_with_its_row_before_training(
    tiny_model: Path, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    model = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.add_tokens(["<|added|>"])
    tokenizer.save_pretrained(model)
    dataset = pairs_file(tmp_path / "pairs.jsonl", rows=60)
    rows = dataset.read_text().splitlines()
    rows[40] = rows[40].replace("It is", "<|added|>")
    dataset.write_text("\n".join(rows) + "\n")
    events = log_of(run_worker(tmp_path, model, dataset))
    assert events[-1].state == "failed"
    assert events[-1].error.startswith(
        "Row 41 has the token id 400 ('<|added|>'), but the model has the ids 0 to 399. The tokenizer of "
    )
    assert "training" not in [event.state for event in events if event.type == "state"]


def test_padding_by_a_token_that_the_model_does_not_have_changes_nothing(tmp_path: Path) -> None:
    """With attention dropout, the model computes its own attention, in padded batches."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    losses = []
    for pad in ("<|endoftext|>", "<|pad|>"):
        model = build_tiny_model(tmp_path / f"model-{len(losses)}")
        config = AutoConfig.from_pretrained(model, attention_dropout=1e-9)
        AutoModelForCausalLM.from_pretrained(model, config=config).save_pretrained(model)
        tokenizer = AutoTokenizer.from_pretrained(model)
        tokenizer.add_special_tokens({"pad_token": pad})
        tokenizer.save_pretrained(model)
        folder = tmp_path / f"run-{len(losses)}"
        folder.mkdir()
        run = run_worker(folder, model, pairs_file(folder / "pairs.jsonl", rows=8), max_steps=1)
        ended = log_of(run)[-1]
        assert (ended.state, ended.error) == ("completed", None)
        losses.append(ended.final_metrics["final_loss"])
    assert losses[0] == losses[1]


def test_a_models_folder_that_cannot_be_written_is_named_and_no_partial_model_is_left(
    tiny_model: Path, tmp_path: Path
) -> None:
    (tmp_path / "models").write_text("a file where the folder should be")
    run = run_worker(tmp_path, tiny_model, pairs_file(tmp_path / "pairs.jsonl"), max_steps=1)
    ended = log_of(run)[-1]
    assert ended.state == "failed"
    assert "models" in ended.error
    assert (run.checkpoints_dir / "checkpoint-1").exists()  # what was trained can still be resumed


def test_the_tokenizers_own_template_and_long_pairs_are_trained_on_and_counted(
    tiny_model: Path, tmp_path: Path
) -> None:
    dataset = pairs_file(tmp_path / "pairs.jsonl", rows=6)
    row = {"prompt": "a " * 100, "chosen": "b " * 100, "rejected": "c"}
    with dataset.open("a") as file:
        file.write(json.dumps(row) + "\n")
    config: dict[str, Any] = {"max_steps": 1, "max_length": 64, "max_prompt_length": 32}
    config["dataset"] = {
        "source": {"source_type": "local_file", "file_path": str(dataset)}, "test_size": 0,
        "format": {"format_type": "tokenizer"},
    }  # fmt: skip
    events = log_of(run_worker(tmp_path, tiny_model, dataset, **config))
    assert events[-1].state == "completed"
    notes = [event.message for event in events if event.type == "log"]
    assert any("1 of 7 rows are longer than max_length: " in note for note in notes), notes


def test_the_finished_model_uses_the_format_of_its_training(tiny_model: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    dataset = {
        "source": {"source_type": "local_file", "file_path": str(pairs_file(tmp_path / "pairs.jsonl"))},
        "format": {"format_type": "custom", "custom_templates": {"user_prefix": "Q: {{ ", "assistant_prefix": " A: "}},
    }
    run = run_worker(tmp_path, tiny_model, tmp_path / "pairs.jsonl", max_steps=1, dataset=dataset)
    assert log_of(run)[-1].state == "completed"
    saved = AutoTokenizer.from_pretrained(run.read_order().output_dir)
    text = saved.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True)
    assert text == "Q: {{ Hi A: "


def labeled_answers(path: Path, count: int, *, each_true: int) -> Path:
    """Write unpaired answers, of which one in `each_true` is labeled false."""
    with path.open("w") as file:
        for number in range(count):
            is_good = number % each_true != 0
            answer = f"It is {2 * number}. The runes agree." if is_good else "Nobody can say."
            row = {"prompt": f"What is {number} plus {number}?", "completion": answer, "label": is_good}
            file.write(json.dumps(row) + "\n")
    return path


def test_unpaired_answers_are_trained_on_by_their_labels(tiny_model: Path, tmp_path: Path) -> None:
    dataset = labeled_answers(tmp_path / "thumbs.jsonl", 48, each_true=4)
    changes = {"training_mode": "kto", "num_epochs": 4, "learning_rate": 1e-2, "eval_steps": 10, "logging_steps": 5}
    source = {"source": {"source_type": "local_file", "file_path": str(dataset)}, "test_size": 0.25}
    run = run_worker(tmp_path, tiny_model, dataset, **changes, dataset=source)
    events = log_of(run)
    assert (events[-1].state, events[-1].error) == ("completed", None)
    final = events[-1].final_metrics
    assert final["initial_eval_reward_margin"] == 0
    assert final["final_eval_reward_margin"] > 0.5
    assert final["final_eval_loss"] < final["initial_eval_loss"] == pytest.approx(0.5)
    assert not [name for event in events if event.type == "metrics" for name in event.metrics if "accuracy" in name]
    notes = [event.message for event in events if event.type == "log"]
    found = [re.match(r"(\d+) answers are labeled true and (\d+) false", note) for note in notes]
    assert [int(match[1]) + int(match[2]) for match in found if match] == [36], notes
    card = (tmp_path / "models" / "tuned" / "README.md").read_text()
    assert "on 36 labeled answers" in card
    assert "| Reward margin |" in card
    assert "count:" not in run.events_file.read_text()


def test_a_margin_of_held_out_answers_with_one_label_cannot_select_the_best_model(
    tiny_model: Path, tmp_path: Path
) -> None:
    dataset = labeled_answers(tmp_path / "thumbs.jsonl", 12, each_true=50)
    changes = {"training_mode": "kto", "load_best_at_end": "eval_reward_margin"}
    ended = log_of(run_worker(tmp_path, tiny_model, dataset, **changes))[-1]
    assert ended.state == "failed"
    assert ended.error.startswith(
        "All 1 answers to evaluate on are labeled true, so that there is no eval_reward_margin"
    )
