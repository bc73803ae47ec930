from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from merlina.domain.targets import Site
from merlina.hardware.gpus import Gpu
from merlina.hub_reachability import HubReach
from merlina.preflight.findings import CheckResult
from merlina.preflight.machine import check_disk, check_gpus, check_merging, check_precision
from merlina.preflight.memory_estimate import check_memory, estimate, trained_weights
from merlina.preflight.models import check_lengths, check_model, check_targets
from merlina.preflight.unused_settings import check_unused_settings
from merlina.schemas.inspection import DataFacts, ModelFacts
from merlina.schemas.training import TrainingConfig
from merlina.settings import Settings


def config(base_model: str = "org/model", **changes: Any) -> TrainingConfig:
    dataset = {"source": {"source_type": "huggingface", "repo_id": "org/set"}}
    return TrainingConfig.model_validate({"base_model": base_model, "output_name": "x", "dataset": dataset, **changes})


def test_no_gpu_is_a_warning_unless_one_is_asked_for() -> None:
    assert check_gpus(config(), []).errors == ()
    assert "trains on the CPU" in check_gpus(config(), []).warnings[0]
    assert "no CUDA GPU" in check_gpus(config(gpu_ids=[0]), []).errors[0]
    assert (
        "this machine has 1 GPU, with the index 0" in check_gpus(config(gpu_ids=[7]), [Gpu(0, "a", 1, 1, 0)]).errors[0]
    )
    cards = [Gpu(0, "a", 1, 1, 0), Gpu(1, "b", 1, 1, 0)]
    assert check_gpus(config(gpu_ids=[1]), cards).passed
    assert (
        "there is no GPU with the index 2; this machine has 2 GPUs, with the indices 0 and 1"
        in check_gpus(config(gpu_ids=[2]), cards).errors[0]
    )


def test_more_gpus_than_pairs_of_a_step_is_a_warning() -> None:
    cards = [Gpu(0, "a", 1, 1, 0), Gpu(1, "b", 1, 1, 0)]
    assert check_gpus(config(gpu_ids=[0, 1], batch_size=2, gradient_accumulation_steps=1), cards) == CheckResult()
    finding = check_gpus(config(gpu_ids=[0, 1], batch_size=1, gradient_accumulation_steps=1), cards)
    assert (finding.errors, len(finding.warnings)) == ((), 1)


@pytest.mark.parametrize(
    ("changes", "warned"),
    [
        ({"training_mode": "sft", "beta": 0.3}, ["beta"]),
        ({"training_mode": "sft"}, []),
        ({"training_mode": "dpo", "beta": 0.3, "simpo_gamma": 1.0}, ["simpo_gamma"]),
        ({"training_mode": "simpo", "beta": 2.0, "simpo_gamma": 1.0}, []),
    ],
)
def test_a_setting_of_another_method_is_a_warning(changes: dict[str, Any], warned: list[str]) -> None:
    finding = check_unused_settings(config(**changes))
    assert finding.errors == ()
    assert [warning.split(":")[0] for warning in finding.warnings] == warned


FACTS = ModelFacts(
    model_type="llama",
    architecture="LlamaForCausalLM",
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


def test_a_frozen_model_too_large_for_one_gpu_is_spread_over_those_named() -> None:
    cards = [Gpu(0, "a", 24_000, 20_000, 4_000), Gpu(1, "b", 24_000, 15_000, 9_000), Gpu(2, "c", 24_000, 16_000, 8_000)]
    alone, of_one = check_memory(
        config(use_4bit=False, gpu_ids=[0], max_length=512, max_prompt_length=256), FACTS, None, cards[:1], lambda _: 0
    )
    together, of_three = check_memory(
        config(use_4bit=False, gpu_ids=[0, 1, 2], max_length=512, max_prompt_length=256),
        FACTS,
        None,
        cards,
        lambda _: 0,
    )
    assert of_one is not None
    assert of_three is not None
    assert (alone.passed, together.passed) == (False, True)
    assert (of_three.place, of_three.free_mb) == ("GPU 1", 15_000)
    assert of_three.parts_mb["weights"] < 0.5 * of_one.parts_mb["weights"]


def test_a_run_that_cannot_fit_names_its_largest_part_and_what_helps_most_first() -> None:
    card = Gpu(0, "a", 24_000, 20_000, 4_000)
    finding, memory = check_memory(config(use_4bit=False, max_length=8192), FACTS, None, [card], lambda _: 0)
    assert memory is not None
    assert memory.needed_mb > memory.free_mb == 20_000
    assert list(memory.parts_mb.values()) == sorted(memory.parts_mb.values(), reverse=True)
    largest = next(iter(memory.parts_mb))
    assert f"Largest component: {largest} (" in finding.errors[0]
    helping = re.findall(r"\(([0-9.]+) GiB\)", finding.errors[0].split("To reduce it:")[1])
    assert helping == sorted(helping, key=float)
    assert check_memory(config(use_4bit=False, max_length=8192), FACTS, None, [card], lambda gpu: 10**6 * (gpu == 0))[
        0
    ].passed
    smaller = config(gradient_checkpointing=True, max_length=512, max_prompt_length=128)
    assert check_memory(smaller, FACTS, None, [card], lambda _: 0)[0].passed


def test_layers_that_are_not_there_are_named_with_those_that_are() -> None:
    assert check_targets(config(target_modules=["q_proj", "model.layers.0.self_attn.q_proj"]), FACTS).passed
    some = check_targets(config(target_modules=["q_proj", "wq"]), FACTS)
    assert some.warnings == ("target_modules: the model has no layers named wq; the others are trained",)
    none = check_targets(config(target_modules=["wq", "wk"]), FACTS)
    assert none.errors == ("target_modules: the model has no layers named wq, wk; it has q_proj",)
    assert check_targets(config(target_modules=["wq"], use_lora=False, use_4bit=False), FACTS).passed


def test_each_saving_makes_the_estimate_smaller() -> None:
    whole = estimate(config(use_4bit=False), FACTS, None, "cuda").total
    for change in (
        {"use_4bit": True},
        {"gradient_checkpointing": True},
        {"use_8bit": True},
        {"max_length": 1025},
        {"lora_r": 8},
    ):
        assert estimate(config(**{"use_4bit": False, **change}), FACTS, None, "cuda").total < whole


def test_scores_that_no_kernel_leaves_out_are_counted() -> None:
    def scores(facts: ModelFacts = FACTS, device: str = "cuda", **changes: Any) -> float:
        return estimate(config(**changes), facts, None, device).components.get("attention scores", 0)

    capped = FACTS.model_copy(update={"caps_scores": True})
    dropped = FACTS.model_copy(update={"drops_scores": True})
    assert scores() == scores(device="cpu") == 0
    queries_by_keys = 4096**2  # a pair as long as max_length allows, both answers
    assert scores(capped) == pytest.approx(1.1 * 32 * queries_by_keys * (32 * 8 + 8))
    assert scores(capped, gradient_checkpointing=True) == pytest.approx(1.1 * 32 * queries_by_keys * 16)
    assert scores(attn_implementation="eager") == pytest.approx(1.1 * 32 * queries_by_keys * (32 * 6 + 8))
    assert scores(attn_implementation="sdpa") == queries_by_keys * 4
    assert scores(dropped, "cpu") == 0
    assert scores(dropped, disable_dropout=False) == 0
    assert scores(dropped, "cpu", disable_dropout=False) > 0


def test_a_model_that_takes_no_packs_makes_all_logits() -> None:
    own_way = FACTS.model_copy(update={"supports_packing": False})
    logits = estimate(config(), own_way, None, "cuda").components["log-probabilities"]
    assert logits == 2 * 2048 * 128_256 * 14
    assert logits > 5 * estimate(config(), FACTS, None, "cuda").components["log-probabilities"]


def test_a_folder_that_cannot_be_written_or_has_no_room_is_named(tmp_path: Path) -> None:
    fresh = Settings(data_dir=tmp_path / "new" / "deeper", models_dir=tmp_path)
    assert check_disk(config(), fresh, None, "cpu").passed
    huge = FACTS.model_copy(update={"parameters": 10**15})
    assert "are needed" in check_disk(config(use_lora=False, use_4bit=False), fresh, huge, "cpu").errors[0]
    (tmp_path / "file").touch()
    blocked = Settings(data_dir=tmp_path / "file" / "data", models_dir=tmp_path)
    assert "file is not writable" in check_disk(config(), blocked, None, "cpu").errors[0]


def test_merged_weights_are_as_wide_on_the_disk_as_the_run_held_them(tmp_path: Path) -> None:
    def mib(device: str, **changes: Any) -> float:
        wanted = config(push_to_hub=True, **changes)
        huge = FACTS.model_copy(update={"parameters": 2**50, "sites": []})
        (error,) = check_disk(wanted, Settings(data_dir=tmp_path, models_dir=tmp_path), huge, device).errors
        return float(error.split(" MiB are free, ")[1].split()[0].replace(",", "")) - 256

    assert mib("cpu") == mib("cuda", use_4bit=False) == 2 * 2**30
    assert mib("cpu", use_4bit=False) == mib("cuda", use_4bit=False, dtype="float32") == 4 * 2**30
    assert mib("cuda", merge_dtype="float32") == 4 * 2**30
    assert mib("cpu", use_4bit=False, use_lora=False) > 8 * 2**30  # once saved, once copied for the upload


def test_merging_that_will_not_fit_into_ram_is_foretold() -> None:
    huge = FACTS.model_copy(update={"parameters": 2**43})
    (warning,) = check_merging(config(push_to_hub=True), huge, "cpu").warnings
    assert "in 16 bits, about 18,022.4 GiB" in warning
    (wider,) = check_merging(config(push_to_hub=True, merge_dtype="float32"), huge, "cuda").warnings
    assert "in 32 bits, about 36,044.8 GiB" in wider
    (unquantized,) = check_merging(config(push_to_hub=True, use_4bit=False), huge, "cpu").warnings
    assert "in 32 bits" in unquantized
    assert warning.endswith("only the adapter is uploaded")
    tiny = FACTS.model_copy(update={"parameters": 1000})
    assert check_merging(config(push_to_hub=True), tiny, "cpu") == CheckResult()
    for changes in ({"push_to_hub": False}, {"merge_lora_before_upload": False}, {"use_4bit": False}):
        assert check_merging(config(**{"push_to_hub": True, **changes}), huge, "cuda") == CheckResult(passed=None)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda folder: shutil.rmtree(folder), "there is no folder"),
        (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
        (
            lambda folder: (folder / "config.json").write_text("{"),
            "is not valid JSON: a name in double quotes was expected at line 1, column 2",
        ),
        (lambda folder: (folder / "model.safetensors").unlink(), "has no weights"),
    ],
)
def test_what_a_models_folder_lacks_is_named(tiny_model: Path, tmp_path: Path, change: Any, complaint: str) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    assert check_model(str(folder), None, HubReach()).passed
    change(folder)
    assert complaint in check_model(str(folder), None, HubReach()).errors[0]


def test_a_gguf_file_must_be_there_and_be_one(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    assert "there is no file" in check_model(str(file), None, HubReach()).errors[0]
    file.write_bytes(b"rubbish")
    assert "is not a GGUF file" in check_model(str(file), None, HubReach()).errors[0]
    file.write_bytes(b"GGUF\x03\0\0\0")
    assert check_model(str(file), None, HubReach()).passed


def test_precision_and_kernel_that_are_not_to_be_had_here_are_named() -> None:
    assert check_precision(config(dtype="float16"), []).errors == (
        "dtype: float16 requires a GPU; use float32 or bfloat16",
    )
    flash = check_precision(config(attn_implementation="flash_attention_2"), [])
    assert flash.errors == ()
    assert flash.warnings == (
        "attn_implementation: flash_attention_2 is not available (it requires a GPU); the run uses auto",
    )
    assert check_precision(config(dtype="float16"), [Gpu(0, "a", 1, 1, 0)]).passed


DATA = DataFacts(rows=9, all_rows=True, usable=9, longest=9000, highest_id=1000, most_tokens=9100, findings=[])


def test_rows_that_the_model_has_no_place_for_are_named() -> None:
    long = config(max_length=16_384)
    assert "never trained on longer texts" in check_lengths(long, FACTS, DATA).warnings[0]
    learned = FACTS.model_copy(update={"learned_positions": True})
    assert "has 8,192 positions; set max_length" in check_lengths(long, learned, DATA).errors[0]
    assert check_lengths(config(max_length=4096), learned, DATA) == CheckResult()
    strange = DATA.model_copy(update={"highest_id": 128_256})
    assert (
        "the token id 128,256, but the model has only the ids 0 to 128,255"
        in check_lengths(config(), FACTS, strange).errors[0]
    )


def test_layers_named_with_their_parents_count_in_the_adapters_size() -> None:
    named = trained_weights(config(target_modules=["self_attn.q_proj"]), FACTS)
    assert named == trained_weights(config(target_modules=["q_proj"]), FACTS) > 0
