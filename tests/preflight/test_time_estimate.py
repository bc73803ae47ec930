from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from merlina.errors import HelperError
from merlina.preflight.time_estimate import EarlierRun, estimate_time, find_earlier_run
from merlina.schemas.inspection import DataFacts, ModelFacts, PairTokens
from merlina.schemas.training.config import TrainingConfig
from merlina.storage import jobs, metrics
from merlina.storage.database import Database
from merlina.storage.metrics import MetricRecord

TOKENS = PairTokens(prompt=100, chosen=50, rejected=50)
DATA = DataFacts(
    rows=200, all_rows=False, usable=100, longest=150, highest_id=9, most_tokens=200, mean_tokens=TOKENS, findings=[]
)
MODEL = ModelFacts(
    model_type="llama",
    parameters=1_200_000,
    linear_parameters=1_000_000,
    hidden_size=100,
    intermediate_size=400,
    attention_size=100,
    attention_heads=2,
    caps_scores=False,
    drops_scores=False,
    supports_packing=True,
    layers=2,
    vocab_size=1000,
    max_positions=4096,
    learned_positions=False,
    sites=[],
)
# Forward FLOPs of one pair by hand: 200 tokens through a million weights; causal attention in two layers of width 100
# (the prompt attends to half of itself, each answer to the prompt and half of itself); output head 100 × 1,000 for
# a hundred answer tokens and, with ORPO, the default, a hundred prompt tokens.
LAYERS = 2 * 200 * 1_000_000 + 4 * 2 * 100 * (100 * 100 / 2 + 2 * (50 * 100 + 50 * 50 / 2))
HEAD_OF_ANSWERS = 2 * 100 * 100 * 1000
HEAD = 2 * HEAD_OF_ANSWERS
TRAINED = 2 * LAYERS + 2 * HEAD
# KTO also computes the prompt with the 50 tokens of another pair's answer.
UNRELATED = 2 * 150 * 1_000_000 + 4 * 2 * 100 * (100 * 100 / 2 + 50 * 100 + 50 * 50 / 2) + 2 * 50 * 100 * 1000
# The largest pack holds five pairs (1,024 tokens): the memory probe runs it, and the first step costs as much again.
TRIED = 2 * 5


def config(*, test_size: float = 0, **changes: Any) -> TrainingConfig:
    dataset = {"source": {"source_type": "huggingface", "repo_id": "org/set"}, "test_size": test_size}
    given = {
        "base_model": "m", "output_name": "x", "dataset": dataset, "batch_size": 5, "gradient_accumulation_steps": 2,
        "num_epochs": 1, "dtype": "float32", "use_4bit": False, **changes,
    }  # fmt: skip
    return TrainingConfig.model_validate(given)


def seconds(wanted: TrainingConfig, *, rows: int = 2000, earlier: TrainingConfig | None = None) -> tuple[int, float]:
    """Return steps and seconds on a processor with 1 GFLOP/s, or after a run with 300 tokens per second."""
    run = EarlierRun("job_1", earlier, 300.0) if earlier else None
    found = estimate_time(wanted, MODEL, DATA, rows, "cpu", run, lambda _dtype, _width: 1e9)
    assert found is not None
    assert found.earlier_run == ("job_1" if earlier else None)
    return found.steps, found.seconds


def test_usable_rows_are_divided_into_steps() -> None:
    assert seconds(config())[0] == 100  # half of 2,000 rows, ten a step
    assert seconds(config(num_epochs=2.5))[0] == 250
    assert seconds(config(test_size=0.1))[0] == 90
    assert seconds(config(max_steps=7))[0] == 7
    assert seconds(config(num_epochs=10), rows=34)[0] == 20  # 17 pairs: each epoch has a step of ten and one of seven


def test_an_earlier_run_determines_the_seconds_per_pair() -> None:
    # A pair counts as 2 x 100 + 50 + 50 tokens: one second.
    assert seconds(config(), earlier=config(learning_rate=1e-3)) == (100, pytest.approx(1000 + TRIED))
    checkpointed = seconds(config(gradient_checkpointing=True), earlier=config())[1]
    assert checkpointed == pytest.approx((1000 + TRIED) * (TRAINED + LAYERS) / TRAINED)
    evaluated = seconds(config(test_size=0.1, eval_steps=30), earlier=config())[1]
    assert evaluated == pytest.approx(900 + TRIED + 4 * 100 * (LAYERS + HEAD) / TRAINED)
    referenced = seconds(config(training_mode="dpo"), earlier=config())[1]
    without_prompts = (1000 + TRIED) * (2 * LAYERS + 2 * HEAD_OF_ANSWERS) + 1000 * (LAYERS + HEAD_OF_ANSWERS)
    assert referenced == pytest.approx(without_prompts / TRAINED)
    held_against_others = seconds(config(training_mode="kto"), earlier=config())[1]
    assert held_against_others == pytest.approx((without_prompts + 2 * 1000 * UNRELATED) / TRAINED)
    again = 2 * LAYERS + 2 * HEAD_OF_ANSWERS + UNRELATED
    known = seconds(config(training_mode="kto"), earlier=config(training_mode="kto"))[1]
    assert known == pytest.approx((without_prompts + 2 * 1000 * UNRELATED) / again)
    assert seconds(config(gpu_ids=[0, 1]), earlier=config())[1] == pytest.approx(505)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(f"sqlite:///{tmp_path / 'merlina.db'}")
    database.migrate()
    yield database
    database.close()


def completed(database: Database, number: int, given: dict[str, Any], *, gpus: list[int] | None = None) -> str:
    """A job that was completed at `number` times a hundred tokens a second."""
    job_id = f"job_{number}"
    values = {
        "job_id": job_id, "state": "completed", "priority": 3, "config": given, "base_model": "m", "output_name": "x",
        "target_dir": "x", "gpus": gpus, "created_at": number, "updated_at": number,
    }  # fmt: skip
    with database.write() as connection:
        record = jobs.add(connection, values)
        speeds = [MetricRecord(step, 0.0, {"tokens_per_second": 100.0 * number}) for step in (1, 2, 3)]
        metrics.add_rows(connection, record.number, speeds)
    return job_id


def test_the_newest_run_with_the_same_precision_and_device_is_used(database: Database) -> None:
    assert find_earlier_run(database, config(), "cpu") is None
    completed(database, 1, config().model_dump(mode="json"))
    newest = completed(database, 2, config(lora_r=4).model_dump(mode="json"))
    completed(database, 3, config(dtype="bfloat16").model_dump(mode="json"))
    completed(database, 4, config(use_4bit=True).model_dump(mode="json"))
    on_gpu = completed(database, 5, config().model_dump(mode="json"), gpus=[0])
    completed(database, 6, {"base_model": "m", "of_another_version": True})
    found = find_earlier_run(database, config(), "cpu")
    assert found is not None
    assert (found.job_id, found.tokens_per_second, found.config.lora_r) == (newest, 200.0, 4)
    found = find_earlier_run(database, config(), "cuda")
    assert found is not None
    assert found.job_id == on_gpu


def test_without_an_earlier_run_the_processor_speed_is_used() -> None:
    at_full_rate = 1000 * TRAINED / 1e9
    # A hundred steps with a constant overhead of 0.01 s each.
    computed = seconds(config())[1] - 1
    assert at_full_rate < computed < 4 * at_full_rate
    every_weight = seconds(config(use_lora=False))[1] - 1
    assert every_weight == pytest.approx(computed * (3 * LAYERS + 4 * HEAD) / TRAINED)


@pytest.mark.parametrize(("rows", "device"), [(None, "cpu"), (0, "cpu"), (2000, "cuda")])
def test_unknown_quantities_give_no_estimate(rows: int | None, device: str) -> None:
    assert estimate_time(config(), MODEL, DATA, rows, device, None, lambda _dtype, _width: 1e9) is None


def test_a_failing_helper_only_prevents_the_estimate() -> None:
    def fails(_dtype: str, _width: int) -> float:
        raise HelperError("died")

    assert estimate_time(config(), MODEL, DATA, 2000, "cpu", None, fails) is None
