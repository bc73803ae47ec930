"""The inspection of a model before a run reports what the run then loads and trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from merlina.preflight.memory_estimate import estimate, trained_weights
from merlina.preflight.models import check_targets
from merlina.schemas.operations import InspectModel
from merlina.schemas.training.config import TrainingConfig
from merlina.schemas.training.machine import AttentionImplementation
from merlina.training.engine.fast_path import choose_logprob_model
from merlina.training.engine.packing import build_pack
from merlina.training.models.adapters import make_trainable
from merlina.worker.helper.inspection import inspect_model
from tests.harness import training_config
from tests.training.models import EXAMPLES, adapted, random_model

pytestmark = pytest.mark.slow

SMALL = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 64,
}  # fmt: skip


def configured(base: Path, **changes: Any) -> TrainingConfig:
    return TrainingConfig.model_validate(training_config(base, base / "pairs.jsonl", "m", use_4bit=False, **changes))


@pytest.mark.parametrize("targets", [["q_proj", "lm_head"], ["lm_head"], ["embed_tokens"], ["q_proj", "embed_tokens"]])
def test_head_and_embeddings_may_be_trained_and_are_counted(tmp_path: Path, targets: list[str]) -> None:
    model = random_model(tie_word_embeddings=False)
    model.config.save_pretrained(tmp_path)
    facts = inspect_model(InspectModel(model_name=str(tmp_path), token=None, trust_remote_code=False))
    config = configured(tmp_path, target_modules=targets)
    assert check_targets(config, facts).warnings == check_targets(config, facts).errors == ()
    trained = make_trainable(model, config)
    assert trained.notes == []
    counted = sum(weight.numel() for weight in trained.model.parameters() if weight.requires_grad)
    assert trained_weights(config, facts) == counted


@pytest.mark.parametrize(
    ("family", "changes", "expected"),
    [
        ("Llama", {}, (False, False, True)),
        ("Gemma2", {}, (True, False, True)),
        ("Llama", {"attention_dropout": 0.1}, (False, True, True)),
        ("GptOss", {"num_local_experts": 2, "num_experts_per_tok": 1}, (False, False, False)),
        ("Lfm2", {"layer_types": ["conv", "full_attention"]}, (False, False, False)),
    ],
)
def test_the_attention_of_a_configuration(
    tmp_path: Path, family: str, changes: dict[str, Any], expected: tuple[bool, bool, bool]
) -> None:
    import transformers

    getattr(transformers, f"{family}Config")(**SMALL, **changes).save_pretrained(tmp_path)
    facts = inspect_model(InspectModel(model_name=str(tmp_path), token=None, trust_remote_code=False))
    assert facts.attention_heads == 4
    assert (facts.caps_scores, facts.drops_scores, facts.supports_packing) == expected


@pytest.mark.parametrize(("family", "implementation"), [("Gemma2", "auto"), ("Llama", "eager"), ("Llama", "auto")])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_counted_attention_scores_are_those_that_autograd_keeps(
    tmp_path: Path, family: str, implementation: AttentionImplementation, dtype: str
) -> None:
    """Compare what one more layer adds to the estimate with what each of the model's two layers keeps of a pack."""
    model = random_model(family, layer_types=None)
    model.config.save_pretrained(tmp_path)
    facts = inspect_model(InspectModel(model_name=str(tmp_path), token=None, trust_remote_code=False))
    config = configured(tmp_path, attn_implementation=implementation, dtype=dtype, max_length=64, max_prompt_length=32)
    two, three = (facts.model_copy(update={"layers": layers}) for layers in (2, 3))
    of_two, of_three = (
        estimate(config, each, None, "cuda").components.get("attention scores", 0) for each in (two, three)
    )
    kept, queries_by_keys = kept_scores(adapted(model), implementation, dtype)
    assert (of_three - of_two) / 128**2 == pytest.approx(1.1 * kept / 2 / queries_by_keys)


def kept_scores(model: Any, implementation: AttentionImplementation, dtype: str) -> tuple[int, int]:
    """Return the bytes of saved tensors with a number per head, query and key, and the count of queries times keys."""
    pack = build_pack(EXAMPLES, with_prompt_targets=False)
    precision = torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == "bfloat16")
    run, reason = choose_logprob_model(model, pack, 0, implementation, precision)
    assert reason is None
    queries_by_keys = pack.input_ids.shape[1] ** 2
    saved: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.numel() == 4 * queries_by_keys:
            saved[tensor.untyped_storage().data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), precision:
        result = run(pack)  # noqa: F841 - its graph holds what was saved, each at an address of its own
    return sum(saved.values()), queries_by_keys
