from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from merlina.hardware.gpus import Gpu
from merlina.preflight.machine import check_disk, check_gpus, check_memory, count_parameters
from merlina.preflight.models import check_model
from merlina.schemas.training import TrainingConfig


def config(base_model: str = "org/model", **changes: Any) -> TrainingConfig:
    dataset = {"source": {"source_type": "huggingface", "repo_id": "org/set"}}
    return TrainingConfig.model_validate({"base_model": base_model, "output_name": "x", "dataset": dataset, **changes})


def test_no_gpu_is_a_warning_unless_one_is_asked_for() -> None:
    assert check_gpus(config(), []).errors == ()
    assert "trains on the CPU" in check_gpus(config(), []).warnings[0]
    assert "no CUDA GPU" in check_gpus(config(gpu_ids=[0]), []).errors[0]
    cards = [Gpu(0, "a", 1, 1, 0), Gpu(1, "b", 1, 1, 0)]
    assert check_gpus(config(gpu_ids=[1]), cards).passed
    assert "there is no GPU 2; this machine has 0, 1" in check_gpus(config(gpu_ids=[2]), cards).errors[0]


def test_weights_that_cannot_fit_are_an_error_with_the_figures(tiny_model: Path) -> None:
    parameters = count_parameters(tiny_model)
    assert parameters is not None
    assert parameters > 10_000
    assert check_memory(config(str(tiny_model)), []).passed
    full = check_memory(config(str(tiny_model), use_4bit=False), [Gpu(0, "a", 1, 0, 1)])
    assert "and 0.0 GiB of GPU are free; use_4bit needs" in full.errors[0]


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    assert check_disk([tmp_path / "new" / "deeper"]).passed
    (tmp_path / "file").touch()
    assert "file can't be written to" in check_disk([tmp_path / "file" / "models"]).errors[0]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda folder: shutil.rmtree(folder), "there is no folder"),
        (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "is no valid JSON"),
        (lambda folder: (folder / "model.safetensors").unlink(), "has no weights"),
    ],
)
def test_what_a_models_folder_lacks_is_named(tiny_model: Path, tmp_path: Path, change: Any, complaint: str) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    assert check_model(str(folder), None).passed
    change(folder)
    assert complaint in check_model(str(folder), None).errors[0]


def test_a_gguf_file_must_be_there_and_be_one(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    assert "there is no file" in check_model(str(file), None).errors[0]
    file.write_bytes(b"rubbish")
    assert "is not a GGUF file" in check_model(str(file), None).errors[0]
    file.write_bytes(b"GGUF\x03\0\0\0")
    assert check_model(str(file), None).passed
