"""The memory estimate for a GPU, compared with peaks measured on an H100 and an H200 with models of real shapes."""

from __future__ import annotations

from typing import Any

import pytest

from merlina.hardware.gpus import Gpu
from merlina.preflight.memory_check import check_memory
from merlina.preflight.memory_estimate import estimate
from merlina.schemas.inspection import DataFacts, ModelFacts
from merlina.schemas.operations import InspectModel
from merlina.schemas.training.config import TrainingConfig
from merlina.worker.helper.inspection import inspect_model

pytestmark = pytest.mark.slow

LLAMA = {"vocab_size": 128_256, "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 16_384}
SHAPES: dict[str, dict[str, Any]] = {
    "1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "tie_word_embeddings": True},
    "8b": {"hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32, "tie_word_embeddings": False},
}
# 8 pairs a step, lengths of 512 to 1,024 unless other, r = 16, bfloat16.
_BENCH = {"use_4bit": False, "lora_dropout": 0.0, "optimizer_type": "adamw_torch", "batch_size": 8}
_BENCH |= {"gradient_accumulation_steps": 1, "max_length": 8192, "max_prompt_length": 4096}
# Positions of the largest pass, and bytes that torch's allocator held at most.
MEASURED: list[tuple[str, dict[str, Any], int, float]] = [
    ("1b", _BENCH, 8192, 12.2e9),
    ("1b", {**_BENCH, "training_mode": "dpo"}, 8192, 12.2e9),
    ("1b", {**_BENCH, "gradient_checkpointing": True}, 8192, 4.3e9),
    ("1b", {**_BENCH, "use_4bit": True}, 8192, 10.8e9),
    ("8b", _BENCH, 8192, 51.5e9),
    # On an H200 with the GPU kernels, which store no dropout masks.
    ("1b", _BENCH, 8192, 11.31e9),
    ("1b", {**_BENCH, "training_mode": "dpo"}, 8192, 11.29e9),
    ("1b", {**_BENCH, "lora_dropout": 0.05}, 8192, 11.31e9),
    # With adapter groups and larger passes: prompts of a half, a fifth and four fifths of each text.
    ("1b", _BENCH, 11_112, 14.24e9),
    ("1b", {**_BENCH, "training_mode": "dpo"}, 11_112, 14.21e9),
    ("1b", {**_BENCH, "lora_dropout": 0.05}, 11_112, 14.27e9),
    ("1b", _BENCH, 13_049, 16.0e9),
    ("1b", _BENCH, 9033, 12.3e9),
    ("8b", _BENCH, 11_112, 57.92e9),
]
DATA = DataFacts(
    rows=300, all_rows=True, usable=300, longest=1024, highest_id=9, most_tokens=1536, mean_tokens=None, findings=[]
)


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelFacts]:
    from transformers import LlamaConfig

    found = {}
    for name, shape in SHAPES.items():
        folder = tmp_path_factory.mktemp(name)
        LlamaConfig(**LLAMA, **shape, head_dim=shape["hidden_size"] // 32).save_pretrained(folder)
        found[name] = inspect_model(InspectModel(model_name=str(folder), token=None, trust_remote_code=False))
    return found


def configure(**changes: Any) -> TrainingConfig:
    dataset = {"source": {"source_type": "huggingface", "repo_id": "org/set"}}
    given = {"base_model": "m", "output_name": "x", "dataset": dataset, "lora_r": 16, **changes}
    return TrainingConfig.model_validate(given)


@pytest.mark.parametrize(("shape", "changes", "positions", "peak"), MEASURED)
def test_the_expected_peak_is_within_15_percent_of_the_measured_one(
    facts: dict[str, ModelFacts], shape: str, changes: dict[str, Any], positions: int, peak: float
) -> None:
    # Pairs of the largest step may be shorter than the longest pair, so the estimate would assume larger passes.
    longest = DATA.model_copy(update={"most_tokens": 2048})
    expected = estimate(configure(**changes), facts[shape], longest, "cuda", budget=positions)
    ratio, with_context = (expected.total - expected.components["libraries"]) / peak, expected.total / peak
    print(
        f"{shape}: measured {peak / 1e9:.1f} GB, expected {expected.total / 1e9:.1f}, {ratio:.2f}, {with_context:.2f}"
    )
    assert 0.85 < ratio < 1.15
    assert 0.85 < with_context < 1.15


def test_longer_pairs_fill_passes_of_the_same_size(facts: dict[str, ModelFacts]) -> None:
    """Measured: 12.2 GB for lengths of 512 to 1,024 and for 2,048 to 4,096 alike."""
    longer = DATA.model_copy(update={"longest": 4096, "most_tokens": 6144})
    short, long = (estimate(configure(**_BENCH), facts["1b"], data, "cuda", budget=8192) for data in (DATA, longer))
    assert short.total == long.total


def card(free_mb: int) -> list[Gpu]:
    return [Gpu(0, "a", 81_000, free_mb, 81_000 - free_mb)]


def test_the_expected_peak_uses_free_memory_and_the_minimum_decides(facts: dict[str, ModelFacts]) -> None:
    config = configure(**_BENCH)
    _, whole = check_memory(config, facts["1b"], DATA, card(80_000), lambda _: 0)
    assert whole is not None
    assert whole.minimum_mb < 0.6 * whole.expected_mb
    assert whole.needed_mb == whole.expected_mb == pytest.approx(sum(whole.parts_mb.values()), abs=5)
    finding, tight = check_memory(config, facts["1b"], DATA, card(9_000), lambda _: 0)
    assert tight is not None
    assert finding.passed
    assert whole.minimum_mb == tight.minimum_mb < tight.expected_mb <= 9_000 < whole.expected_mb
    refused, none = check_memory(config, facts["1b"], DATA, card(4_000), lambda _: 0)
    assert none is not None
    assert none.expected_mb == none.minimum_mb > 4_000
    assert "the run needs at least " in refused.errors[0]


def test_a_step_with_few_pairs_expects_only_their_memory(facts: dict[str, ModelFacts]) -> None:
    one = configure(**{**_BENCH, "batch_size": 1})
    _, memory = check_memory(one, facts["1b"], DATA, card(80_000), lambda _: 0)
    assert memory is not None
    assert memory.expected_mb == memory.minimum_mb
