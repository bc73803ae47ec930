"""Which layers get adapters in dense, mixture-of-experts and multimodal models; such adapters can be loaded."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from merlina.domain.adapter_targets import describe, group, match, match_whole_layers, warn_about_experts
from merlina.errors import ModelError
from merlina.schemas.training.config import TrainingConfig
from merlina.training.engine.fast_path import choose_logprob_model
from merlina.training.engine.packing import build_pack
from merlina.training.models.adapter_targets import sites
from merlina.training.models.adapters import make_trainable
from tests.training.models import EXAMPLES

pytestmark = pytest.mark.slow

SMALL: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
MIXTURES: dict[str, dict[str, Any]] = {
    "Qwen2Moe": {**EXPERTS, "shared_expert_intermediate_size": 24},
    "Qwen3Moe": EXPERTS,
    "Mixtral": EXPERTS,
}
DEFAULT = ["up_proj", "down_proj", "gate_proj", "k_proj", "q_proj", "v_proj", "o_proj"]


def build(family: str, **changes: Any) -> Any:
    import transformers

    config = getattr(transformers, f"{family}Config")(**{**SMALL, **changes})
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(config).eval()


def build_multimodal(family: str) -> Any:
    """Return a model with a one-layer vision tower whose projections have the same names as the text decoder's."""
    import transformers

    text = {**SMALL, "head_dim": 8, "sliding_window": 4, "final_logit_softcapping": 3.0}
    text["layer_types"] = ["sliding_attention", "full_attention"]
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 28, "patch_size": 14, "head_dim": 8}
    if family == "Gemma4":
        text |= {"hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0, "global_head_dim": 8}
    config = getattr(transformers, f"{family}Config")(text_config=text, vision_config=vision, audio_config=None)
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()


def configure(**changes: Any) -> TrainingConfig:
    dataset = {"source": {"source_type": "huggingface", "repo_id": "org/set"}}
    given = {"base_model": "m", "output_name": "x", "dataset": dataset, "use_4bit": False, "lora_r": 4, **changes}
    return TrainingConfig.model_validate(given)


def adapted_paths(model: Any) -> set[str]:
    """Return the paths of all layers and parameters with an adapter, as in the model without adapters."""
    found = set()
    for name, module in model.named_modules():
        if hasattr(module, "lora_A"):
            path = name.removeprefix("base_model.model.").replace(".base_layer", "")
            found.add(f"{path}.{module.parameter_name}" if hasattr(module, "parameter_name") else path)
    return found


@pytest.mark.parametrize("family", ["Llama", "GPT2", "Qwen2Moe", "Qwen3Moe", "Mixtral"])
def test_all_linear_adapts_every_linear_layer_and_expert_but_not_the_head(family: str) -> None:
    model = build(family, **MIXTURES.get(family, {}))
    expected = {
        name
        for name, module in model.named_modules()
        if (isinstance(module, torch.nn.Linear) or type(module).__name__ == "Conv1D") and name != "lm_head"
    }
    expected |= {name for name, weight in model.named_parameters() if weight.ndim == 3}
    trainable = make_trainable(model, configure(target_modules="all-linear"))
    assert adapted_paths(trainable.model) == expected
    assert not any("no layers named" in note for note in trainable.notes)
    trained = sum(weight.numel() for weight in trainable.model.parameters() if weight.requires_grad)
    assert sum(kind.trained for kind in trainable.kinds) == trained


@pytest.mark.parametrize("family", list(MIXTURES))
def test_routed_experts_are_left_out_with_a_warning_unless_they_are_named(family: str) -> None:
    plain = make_trainable(build(family, **MIXTURES[family]), configure(target_modules=DEFAULT))
    assert not any("experts." in path for path in adapted_paths(plain.model))
    assert "experts" in (warn_about_experts(plain.kinds) or "")
    model = build(family, **MIXTURES[family])
    whole = sum(weight.numel() for weight in model.parameters())
    share = sum(weight.numel() for weight in model.parameters() if weight.ndim == 3) / whole
    named = make_trainable(model, configure(target_modules=[*DEFAULT, "experts"]))
    routed = next(kind for kind in named.kinds if kind.kind == "routed experts")
    assert (routed.adapted, routed.total, routed.share_without) == (4, 4, 0)
    assert routed.share == pytest.approx(share)
    assert warn_about_experts(named.kinds) is None
    assert "routed experts (4 of 4, " in describe(named.kinds)
    assert any(note.startswith("lora_dropout: the routed experts") for note in named.notes)
    dropouts = {
        type(module.lora_dropout["default"]).__name__
        for module in named.model.modules()
        if hasattr(module, "lora_dropout")
    }
    assert dropouts == {"Dropout", "Identity"}


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (["experts.down_proj"], {f"model.layers.{layer}.mlp.experts.down_proj" for layer in (0, 1)}),
        (["layers.1.mlp.experts"], {f"model.layers.1.mlp.experts.{name}" for name in ("gate_up_proj", "down_proj")}),
        (["layers.1.self_attn.q_proj"], {"model.layers.1.self_attn.q_proj"}),
        (["shared_expert.up_proj"], {f"model.layers.{layer}.mlp.shared_expert.up_proj" for layer in (0, 1)}),
    ],
)  # fmt: skip
def test_target_paths_have_the_same_meaning_in_run_and_checks(targets: list[str], expected: set[str]) -> None:
    model = build("Qwen2Moe", **MIXTURES["Qwen2Moe"])
    found = group(sites(model))
    chosen, missing = match(found, targets)
    trainable = make_trainable(model, configure(target_modules=targets))
    assert adapted_paths(trainable.model) == expected
    trained = sum(weight.numel() for weight in trainable.model.parameters() if weight.requires_grad)
    assert (sum(site.adapter_weights(4, has_magnitudes=False) for site in chosen), missing) == (trained, [])


@pytest.mark.parametrize("targets", [["q_proj", "down_proj"], ["layers.1.mlp.up_proj"]])
def test_the_checks_count_the_magnitudes_of_dora(targets: list[str]) -> None:
    model = build("Llama", **SMALL)
    chosen, _ = match(group(sites(model)), targets)
    trainable = make_trainable(model, configure(target_modules=targets, use_dora=True))
    trained = sum(weight.numel() for weight in trainable.model.parameters() if weight.requires_grad)
    assert sum(site.adapter_weights(4, has_magnitudes=True) for site in chosen) == trained
    assert sum(kind.trained for kind in trainable.kinds) == trained


@pytest.mark.parametrize("is_tied", [False, True])
@pytest.mark.parametrize(
    "names", [["lm_head"], ["embed_tokens", "lm_head"], ["up_proj"], ["layers.1.self_attn.k_proj"]]
)
def test_the_checks_count_the_weights_of_whole_layers(names: list[str], is_tied: bool) -> None:
    model = build("Llama", **SMALL, tie_word_embeddings=is_tied)
    found = group(sites(model))
    whole, problem = match_whole_layers(found, names, ["q_proj"], is_quantized=False)
    adapted, _ = match(found, ["q_proj"])
    trainable = make_trainable(model, configure(target_modules=["q_proj"], modules_to_save=names))
    trained = sum(weight.numel() for weight in trainable.model.parameters() if weight.requires_grad)
    counted = sum(site.adapter_weights(4, has_magnitudes=False) for site in adapted)
    assert (counted + sum(site.whole_parameters for site in whole), problem) == (trained, None)


@pytest.mark.parametrize(
    ("names", "changes", "problem"),
    [
        (["head"], {}, "the model has no layers named head; it has"),
        (["up_proj"], {"target_modules": "all-linear"}, "up_proj would also get an adapter"),
        (["up_proj"], {"use_4bit": True}, "up_proj cannot be trained as a whole in 4 or 8 bits"),
    ],
)
def test_layers_that_cannot_be_trained_as_a_whole_are_refused(
    names: list[str], changes: dict[str, Any], problem: str
) -> None:
    settings = {"target_modules": ["q_proj"], "modules_to_save": names, **changes}
    with pytest.raises(ModelError, match=f"modules_to_save: {problem}"):
        make_trainable(build("Llama", **SMALL), configure(**settings))


def test_missing_targets_are_reported_with_existing_ones() -> None:
    with pytest.raises(ModelError, match=r"no layers named wq; it has embed_tokens, experts, k_proj, lm_head"):
        make_trainable(build("Mixtral", **EXPERTS), configure(target_modules=["wq"]))


@pytest.mark.parametrize("family", ["DeepseekV3", "Glm4Moe"])
def test_layers_that_peft_would_take_for_experts_are_reported(family: str) -> None:
    """peft interprets gate_proj and related names as experts of transformers 4; such adapters could not be loaded."""
    changes: dict[str, Any] = {
        **EXPERTS,
        "n_routed_experts": 4,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
    }
    if family == "DeepseekV3":
        changes |= {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 8, "v_head_dim": 8, "qk_nope_head_dim": 8}
    trainable = make_trainable(build(family, **changes), configure(target_modules=DEFAULT))
    (note,) = [note for note in trainable.notes if "cannot have adapters" in note]
    assert all(name in note for name in ("gate_proj", "up_proj", "down_proj"))
    assert all("self_attn" in path for path in adapted_paths(trainable.model))


@pytest.mark.parametrize("family", ["Gemma3", "Gemma4"])
def test_only_the_text_decoder_of_a_multimodal_model_is_adapted(family: str) -> None:
    model = build_multimodal(family)
    linear = [
        name for name, module in model.named_modules() if type(module).__name__.endswith(("Linear", "ClippableLinear"))
    ]
    assert any("vision" in name and name.endswith(".q_proj") for name in linear)
    trainable = make_trainable(model, configure(target_modules=DEFAULT, lora_dropout=0.0))
    assert len(adapted_paths(trainable.model)) >= 2 * 6
    assert all("language_model" in path for path in adapted_paths(trainable.model))
    pack = build_pack(EXAMPLES, with_prompt_targets=False)
    run, reason = choose_logprob_model(trainable.model, pack, 0, "auto", nullcontext())
    assert reason is None
    run(pack).sums.sum().backward()
    halves = [weight for name, weight in trainable.model.named_parameters() if "lora_B" in name]
    assert halves
    assert all(weight.grad is not None and weight.grad.abs().max() > 0 for weight in halves)


@pytest.mark.parametrize("family", list(MIXTURES))
def test_adapters_on_experts_are_saved_loaded_and_merged(family: str, tmp_path: Path) -> None:
    model = make_trainable(
        build(family, **MIXTURES[family]), configure(target_modules=["q_proj", "experts"], lora_dropout=0.0)
    ).model
    torch.manual_seed(2)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.data.normal_(std=0.2)
    model.eval()
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    pack = build_pack(EXAMPLES, with_prompt_targets=False)
    with torch.no_grad():
        expected = model(ids).logits
    packed, reason = choose_logprob_model(model, pack, 0, "auto", nullcontext())
    assert reason is None
    with torch.no_grad():
        sums = packed(pack).sums
    model.save_pretrained(tmp_path)
    base = build(family, **MIXTURES[family])
    with torch.no_grad():
        plain = base(ids).logits
        again = PeftModel.from_pretrained(base, tmp_path).eval()
        torch.testing.assert_close(again(ids).logits, expected, rtol=1e-4, atol=1e-5)
        assert (plain - expected).abs().max() > 1e-2
        merged: Any = again.merge_and_unload()
        torch.testing.assert_close(merged(ids).logits, expected, rtol=1e-4, atol=1e-5)
    unpacked, reason = choose_logprob_model(merged.requires_grad_(), pack, 0, "auto", nullcontext())
    with torch.no_grad():
        torch.testing.assert_close(unpacked(pack).sums, sums, rtol=1e-4, atol=1e-4)
