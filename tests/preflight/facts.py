"""A configuration and facts on a model and data, for the tests of the checks."""

from __future__ import annotations

from typing import Any

from merlina.domain.adapter_targets import Site
from merlina.schemas.inspection import DataFacts, ModelFacts
from merlina.schemas.training.config import TrainingConfig

FACTS = ModelFacts(
    model_type="llama",
    parameters=8_000_000_000,
    linear_parameters=7_000_000_000,
    hidden_size=4096,
    intermediate_size=14336,
    attention_size=4096,
    attention_heads=32,
    caps_scores=False,
    drops_scores=False,
    supports_packing=True,
    layers=32,
    vocab_size=128_256,
    max_positions=8192,
    learned_positions=False,
    sites=[
        Site(
            path="model.layers.*.self_attn.q_proj",
            kind="attention",
            count=32,
            parameters=32 * 4096**2,
            adapter_width=32 * 8192,
        )
    ],
)

DATA = DataFacts(rows=9, all_rows=True, usable=9, longest=9000, highest_id=1000, most_tokens=9100, findings=[])


def config(base_model: str = "org/model", **changes: Any) -> TrainingConfig:
    dataset = {"source": {"source_type": "huggingface", "repo_id": "org/set"}}
    return TrainingConfig.model_validate({"base_model": base_model, "output_name": "x", "dataset": dataset, **changes})
