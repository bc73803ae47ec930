from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from merlina.domain.adapter_targets import Site
from merlina.hub_reachability import HubReachability
from merlina.preflight.models import check_model, check_targets, check_tokens
from merlina.preflight.report import CheckResult
from tests.preflight.facts import DATA, FACTS, config


def test_missing_layers_are_named_with_existing_ones() -> None:
    assert check_targets(config(target_modules=["q_proj", "model.layers.0.self_attn.q_proj"]), FACTS).passed
    some = check_targets(config(target_modules=["q_proj", "wq"]), FACTS)
    assert some.warnings == ("target_modules: the model has no layers named wq; the others are trained",)
    none = check_targets(config(target_modules=["wq", "wk"]), FACTS)
    assert none.errors == ("target_modules: the model has no layers named wq, wk; it has q_proj",)
    assert check_targets(config(target_modules=["wq"], use_lora=False, use_4bit=False), FACTS).passed


def test_dora_is_for_linear_layers() -> None:
    assert check_targets(config(use_dora=True), FACTS).passed
    head = Site(path="lm_head", kind="output head", parameters=8, adapter_width=6, outputs=4)
    experts = Site(path="experts.down_proj", kind="routed experts", is_parameter=True, parameters=8, adapter_width=6)
    for site, target in ((head, "lm_head"), (experts, "experts")):
        facts = FACTS.model_copy(update={"sites": [*FACTS.sites, site]})
        (message,) = check_targets(config(use_dora=True, target_modules=["q_proj", target]), facts).errors
        assert message.startswith("use_dora: is for linear layers")


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
def test_missing_files_of_a_model_folder_are_errors(
    tiny_model: Path, tmp_path: Path, change: Any, complaint: str
) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    assert check_model(str(folder), None, HubReachability()).passed
    change(folder)
    assert complaint in check_model(str(folder), None, HubReachability()).errors[0]


def test_a_gguf_file_must_exist_and_be_valid(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    assert "there is no file" in check_model(str(file), None, HubReachability()).errors[0]
    file.write_bytes(b"rubbish")
    assert "is not a GGUF file" in check_model(str(file), None, HubReachability()).errors[0]
    file.write_bytes(b"GGUF\x03\0\0\0")
    assert check_model(str(file), None, HubReachability()).passed


def test_rows_with_too_many_tokens_or_unknown_ids_are_findings() -> None:
    long = config(max_length=16_384)
    assert "never trained on longer texts" in check_tokens(long, FACTS, DATA).warnings[0]
    learned = FACTS.model_copy(update={"learned_positions": True})
    assert "has 8,192 positions; set max_length" in check_tokens(long, learned, DATA).errors[0]
    assert check_tokens(config(max_length=4096), learned, DATA) == CheckResult()
    strange = DATA.model_copy(update={"highest_id": 128_256})
    assert (
        "the token id 128,256, but the model has only the ids 0 to 128,255"
        in check_tokens(config(), FACTS, strange).errors[0]
    )
