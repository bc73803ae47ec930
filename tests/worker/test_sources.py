"""Runs on several sources, and with data sets of their own to evaluate on."""

from __future__ import annotations

import json
import math
import threading
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from merlina.run_folder.folder import RunFolder
from merlina.run_folder.order import RunOrder
from merlina.schemas.training.config import TrainingConfig
from merlina.worker.run.training_order import training_order
from tests.data_host import data_host
from tests.harness import training_config
from tests.worker.test_worker import carry_out_order, log_of

pytestmark = pytest.mark.slow


def rows_file(path: Path, subject: str, count: int, first: int = 0) -> Path:
    with path.open("w") as file:
        for number in range(first, first + count):
            row = {
                "prompt": f"What is {number} {subject} {number}?",
                "chosen": f"It is {number}, by {subject}.",
                "rejected": "Nobody knows.",
            }
            file.write(json.dumps(row) + "\n")
    return path


def local(file: Path) -> dict[str, Any]:
    return {"source_type": "local_file", "file_path": str(file)}


def run_on(folder: Path, model: Path, dataset: dict[str, Any], **changes: Any) -> RunFolder:
    """Carry out a run; the server would have resolved the same files."""
    content = training_config(model, Path("unused"), "tuned", **changes, dataset=dataset)
    config = TrainingConfig.model_validate(content)
    first, *others = (*config.dataset.training_parts, *config.dataset.eval_parts)
    order = RunOrder(
        job_id="job_1",
        attempt=1,
        config=config,
        dataset_file=first.config.source.file_path,
        source_files={part.location: str(part.config.source.file_path) for part in others},
        output_dir=str(folder / "models" / "tuned"),
    )
    return carry_out_order(folder, order)


def notes_of(run: RunFolder) -> list[str]:
    return [event.message for event in log_of(run) if event.type == "log"]


@pytest.mark.parametrize("no_ranges", [False, True], ids=["ranges", "no ranges"])
def test_a_stop_ends_the_wait_for_a_slow_server(tiny_model: Path, tmp_path: Path, no_ranges: bool) -> None:
    content = rows_file(tmp_path / "plus.jsonl", "plus", 24).read_bytes()
    with data_host({"plus.jsonl": content}) as host:
        host.drips, host.no_ranges = True, no_ranges
        source = {"source_type": "url", "url": f"{host.origin}/plus.jsonl"}
        config = TrainingConfig.model_validate(
            training_config(tiny_model, Path("unused"), "tuned", dataset={"source": source})
        )
        order = RunOrder(
            job_id="job_1",
            attempt=1,
            config=config,
            allowed_data_urls=(host.origin,),
            output_dir=str(tmp_path / "models" / "tuned"),
        )

        def stop() -> None:
            if host.dripping.wait(60):
                RunFolder(tmp_path / "run").stop_file.touch()

        thread = threading.Thread(target=stop)
        thread.start()
        run = carry_out_order(tmp_path, order)
        thread.join()
        assert not host.released.is_set()
    assert log_of(run)[-1].state == "stopped"


def test_all_sources_are_trained_on_and_evaluated_by_name(tiny_model: Path, tmp_path: Path) -> None:
    plus, times = rows_file(tmp_path / "plus.jsonl", "plus", 24), rows_file(tmp_path / "times.jsonl", "times", 16)
    news = rows_file(tmp_path / "news.jsonl", "minus", 24, first=100)
    seen = rows_file(tmp_path / "seen.jsonl", "plus", 4)
    dataset = {
        "sources": [{"source": local(plus)}, {"source": local(times), "max_samples": 10, "weight": 2}],
        "eval_sources": {"news": local(news), "seen": local(seen)},
    }
    run = run_on(tmp_path, tiny_model, dataset, eval_steps=5, num_epochs=2, learning_rate=1e-2)
    ended = log_of(run)[-1]
    assert (ended.state, ended.error) == ("completed", None)
    notes = notes_of(run)
    assert "44 pairs (34 different ones) to train on, 28 to evaluate on" in notes
    assert "Rows are numbered through all sources, which begin at 1 (plus.jsonl), 25 (times.jsonl)" in notes
    assert [note for note in notes if note.startswith("Format of the rows of times.jsonl: ")]
    shared = (
        "dataset.eval_sources.seen: 4 of 4 pairs to evaluate on share their prompt with a pair of the training data"
    )
    assert [note for note in notes if note.startswith(shared)]
    # Length bias is no defect of a data set to evaluate on.
    assert not [note for note in notes if note.startswith("dataset.eval_sources.news")]
    final = ended.final_metrics
    assert final["final_eval_loss"] == pytest.approx(
        24 / 28 * final["final_eval_loss/news"] + 4 / 28 * final["final_eval_loss/seen"], rel=1e-5
    )
    assert final["final_eval_loss/seen"] < final["final_eval_loss/news"] < final["initial_eval_loss/news"]
    card = (tmp_path / "models" / "tuned" / "README.md").read_text()
    assert "on 34 preference pairs\n(evaluated on 24 of news, 4 of seen)" in card
    assert "Measured on the 28 pairs of news, seen" in card


@pytest.mark.parametrize("mode", ["dpo", "kto"])
def test_a_reference_is_computed_for_each_set(tiny_model: Path, tmp_path: Path, mode: str) -> None:
    dataset = {
        "source": local(rows_file(tmp_path / "a.jsonl", "plus", 8)),
        "eval_sources": {"news": local(rows_file(tmp_path / "b.jsonl", "minus", 5))},
        "test_size": 0.25,
    }
    run = run_on(tmp_path, tiny_model, dataset, training_mode=mode, eval_steps=1, max_steps=2)
    final = log_of(run)[-1].final_metrics
    expected = 0.5 if mode == "kto" else pytest.approx(0.6931472, abs=1e-6)
    for name in ("eval_loss", "eval_loss/news", "eval_loss/held_out"):
        assert final[f"initial_{name}"] == expected
    assert final["initial_eval_reward_accuracy/news"] == 0.5


def thumbs_file(path: Path, count: int) -> Path:
    rows = [{"prompt": f"Why {n}?", "completion": f"So, {n}.", "label": n % 2 == 0} for n in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("source_order", ["interleave", "concatenate"])
def test_pairs_and_unpaired_answers_are_trained_on_and_evaluated_together(
    tiny_model: Path, tmp_path: Path, source_order: str
) -> None:
    pairs, thumbs = rows_file(tmp_path / "pairs.jsonl", "plus", 8), thumbs_file(tmp_path / "thumbs.jsonl", 8)
    dataset = {
        "sources": [{"source": local(pairs)}, {"source": local(thumbs)}],
        "source_order": source_order,
        "eval_sources": {"pairs": local(pairs), "thumbs": local(thumbs)},
    }
    settings = {"training_mode": "kto", "shuffle_dataset": False, "eval_steps": 2, "learning_rate": 1e-2}
    run = run_on(tmp_path, tiny_model, dataset, **settings, num_epochs=2)
    ended = log_of(run)[-1]
    assert (ended.state, ended.error) == ("completed", None)
    notes = notes_of(run)
    assert "24 pairs to train on, 24 to evaluate on" in notes
    assert not [note for note in notes if "fail on packed texts" in note]
    final = ended.final_metrics
    for name in ("rewards_chosen", "rewards_rejected"):
        overall, (low, high) = (
            final[f"final_eval_{name}"],
            sorted(final[f"final_eval_{name}/{each}"] for each in ("pairs", "thumbs")),
        )
        assert low <= overall <= high
    assert final["final_eval_reward_margin"] == pytest.approx(
        final["final_eval_rewards_chosen"] - final["final_eval_rewards_rejected"], abs=1e-6
    )


def test_the_best_model_is_selected_on_a_data_set_of_its_own(tiny_model: Path, tmp_path: Path) -> None:
    training, news = rows_file(tmp_path / "a.jsonl", "plus", 8), rows_file(tmp_path / "b.jsonl", "minus", 5)
    dataset = {"source": local(training), "eval_source": local(news)}
    settings = {"load_best_at_end": "eval_loss", "early_stopping_patience": 2, "eval_steps": 1, "max_steps": 3}
    ended = log_of(run_on(tmp_path, tiny_model, dataset, **settings))[-1]
    assert (ended.state, ended.error) == ("completed", None)
    assert ended.final_metrics["kept_step"] > 0


def test_the_balance_of_labels_counts_the_weights_of_sources(tiny_model: Path, tmp_path: Path) -> None:
    def thumbs(name: str, count: int, label: bool) -> Path:
        rows = [{"prompt": f"{name} {n}?", "completion": f"So, {n}.", "label": label} for n in range(count)]
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return tmp_path / name

    up, down = thumbs("up.jsonl", 40, True), thumbs("down.jsonl", 8, False)
    notes = {}
    for weight in (1, 5):
        sources = [{"source": local(up)}, {"source": local(down), "weight": weight}]
        folder = tmp_path / str(weight)
        folder.mkdir()
        run = run_on(folder, tiny_model, {"sources": sources, "test_size": 0}, training_mode="kto", max_steps=1)
        notes[weight] = [note for note in notes_of(run) if "are labeled" in note]
    assert notes[5] == []
    assert notes[1][0].startswith("40 answers are labeled true and 8 false")


def test_a_single_set_has_no_metrics_of_its_own(tiny_model: Path, tmp_path: Path) -> None:
    training = rows_file(tmp_path / "a.jsonl", "plus", 8)
    dataset = {"source": local(training), "eval_source": local(rows_file(tmp_path / "b.jsonl", "minus", 5))}
    run = run_on(tmp_path, tiny_model, dataset, eval_steps=1, max_steps=1)
    final = log_of(run)[-1].final_metrics
    assert "8 pairs to train on, 5 to evaluate on" in notes_of(run)
    assert "final_eval_loss" in final
    assert not [name for name in final if "/" in name]


def test_each_data_set_to_evaluate_on_is_read_with_its_own_options(tiny_model: Path, tmp_path: Path) -> None:
    renamed, thumbs = tmp_path / "renamed.jsonl", thumbs_file(tmp_path / "thumbs.jsonl", 6)
    rows = [{"asked": f"Where is {n}?", "good": f"It is {n}.", "bad": "No."} for n in range(9)]
    renamed.write_text("".join(json.dumps(row) + "\n" for row in rows))
    training = rows_file(tmp_path / "a.jsonl", "plus", 8)
    mapping = {"asked": "prompt", "good": "chosen", "bad": "rejected"}
    dataset = {
        "source": local(training),
        "max_samples": 7,
        "row_format": "standard",
        "eval_sources": {
            "plain": local(training),
            "renamed": {"source": local(renamed), "column_mapping": mapping, "max_samples": 5},
            "thumbs": {"source": local(thumbs), "row_format": "unpaired"},
        },
    }
    run = run_on(tmp_path, tiny_model, dataset, training_mode="kto", eval_steps=1, max_steps=1)
    ended = log_of(run)[-1]
    assert (ended.state, ended.error) == ("completed", None)
    notes = notes_of(run)
    # Beside unpaired answers, each answer of a pair counts by itself.
    assert "14 pairs to train on, 30 to evaluate on" in notes
    card = (tmp_path / "models" / "tuned" / "README.md").read_text()
    assert "14 of plain, 10 of renamed, 6 of thumbs" in " ".join(card.split())
    assert {f"final_eval_loss/{name}" for name in ("plain", "renamed", "thumbs")} <= ended.final_metrics.keys()


def test_metrics_of_sets_with_similar_names_do_not_mix(tiny_model: Path, tmp_path: Path) -> None:
    files = {name: rows_file(tmp_path / f"{name}.jsonl", name, 4) for name in ("x", "x-unrelated", "x.x")}
    training = rows_file(tmp_path / "a.jsonl", "plus", 8)
    settings = {"training_mode": "kto", "eval_steps": 1, "max_steps": 2, "learning_rate": 1e-2}
    together = {name: local(file) for name, file in files.items()}
    alone: dict[str, float] = {}
    for name, file in files.items():
        folder = tmp_path / "alone" / name
        folder.mkdir(parents=True)
        dataset = {"source": local(training), "eval_source": local(file)}
        alone |= {
            f"{metric}/{name}": value
            for metric, value in log_of(run_on(folder, tiny_model, dataset, **settings))[-1].final_metrics.items()
            if metric.startswith(("final_eval_", "initial_eval_"))
        }
    dataset = {"source": local(training), "eval_sources": together}
    final = log_of(run_on(tmp_path, tiny_model, dataset, **settings))[-1].final_metrics
    of_sets = {metric: value for metric, value in final.items() if "/" in metric}
    assert of_sets == pytest.approx(alone, rel=1e-4, abs=1e-6)


def test_an_unusable_data_set_to_evaluate_on_is_named(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text('{"prompt": "a", "chosen": "", "rejected": "b"}\n')
    dataset = {
        "source": local(rows_file(tmp_path / "a.jsonl", "plus", 8)),
        "eval_sources": {"news": local(tmp_path / "empty.jsonl")},
    }
    ended = log_of(run_on(tmp_path, tiny_model, dataset))[-1]
    assert ended.state == "failed"
    assert ended.error.startswith("dataset.eval_sources.news: None of the data set's 1 rows can be used: row 1: chosen")


def test_a_source_without_a_usable_pair_ends_the_run(tiny_model: Path, tmp_path: Path) -> None:
    good, long = rows_file(tmp_path / "good.jsonl", "plus", 8), rows_file(tmp_path / "long.jsonl", "plus " * 100, 3)
    dataset = {"sources": [{"source": local(good)}, {"source": local(long)}], "drop_overlong": True}
    ended = log_of(run_on(tmp_path, tiny_model, dataset, max_steps=1))[-1]
    assert ended.state == "failed"
    assert ended.error == "dataset.sources.1: no row of long.jsonl can be used; correct it or leave it out"


def test_a_row_that_repeats_one_of_another_source_is_dropped(tiny_model: Path, tmp_path: Path) -> None:
    files = [rows_file(tmp_path / f"{name}.jsonl", "plus", 6, first) for name, first in (("a", 0), ("b", 4))]
    dataset = {"sources": [{"source": local(file)} for file in files], "drop_duplicates": True, "test_size": 0}
    notes = notes_of(run_on(tmp_path, tiny_model, dataset, max_steps=1))
    assert "10 pairs to train on, 0 held out for evaluation" in notes
    assert any("2 of 12 rows repeat an earlier one and are dropped" in note for note in notes), notes


def order_of(weights: list[float], source_order: str, held_out: Collection[int] = (), seed: int = 0) -> list[int]:
    """Return the order of the pairs of sources with four pairs each; the rows of the first are 1 to 4."""
    source = local(Path("x"))
    dataset = {"sources": [{"source": source, "weight": weight} for weight in weights], "source_order": source_order}
    config = TrainingConfig.model_validate(training_config(Path("m"), Path("x"), "o", dataset=dataset, seed=seed))
    numbers = np.arange(1, 4 * len(weights) + 1)
    is_training = np.array([number not in held_out for number in numbers.tolist()])
    return training_order(config, numbers, is_training, [4 * index for index in range(len(weights))]).tolist()


def test_sources_follow_or_interleave_each_other() -> None:
    assert order_of([1, 1], "concatenate") == [0, 1, 2, 3, 4, 5, 6, 7]
    assert order_of([1, 1], "interleave") == [0, 4, 1, 5, 2, 6, 3, 7]
    assert order_of([1, 1], "interleave", held_out={6, 8}) == [0, 4, 1, 2, 6, 3]


def test_a_small_weight_leaves_at_least_one_pair_of_a_source() -> None:
    assert [index for index in order_of([1, 0.01], "concatenate") if index >= 4] != []


def test_a_weight_repeats_pairs_or_takes_a_random_share_of_them() -> None:
    assert order_of([1, 2], "concatenate") == [0, 1, 2, 3, 4, 5, 6, 7, 4, 5, 6, 7]
    halves = {tuple(order_of([1, 0.5], "concatenate", seed=seed)[4:]) for seed in range(20)}
    assert {len(set(half)) for half in halves} == {2}
    assert {index for half in halves for index in half} == {4, 5, 6, 7}
    assert order_of([2.5], "concatenate", seed=3) == order_of([2.5], "concatenate", seed=3)
    assert len(order_of([2.5], "concatenate")) == 10


@given(st.lists(st.floats(0.01, 5), min_size=1, max_size=5), st.sampled_from(["interleave", "concatenate"]))
def test_each_pair_is_there_as_often_as_its_weight_rounded_either_way(weights: list[float], source_order: str) -> None:
    counts = Counter(order_of(weights, source_order))
    for index, weight in enumerate(weights):
        for place in range(4 * index, 4 * index + 4):
            assert counts[place] in (math.floor(weight), math.ceil(weight))
