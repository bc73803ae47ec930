from __future__ import annotations

from pathlib import Path
from typing import Any

from merlina.hardware.gpus import Gpu
from merlina.preflight.machine import check_disk, check_gpus, check_merging, check_precision
from merlina.preflight.report import CheckResult
from merlina.settings import Settings
from tests.preflight.facts import FACTS, config


def test_a_missing_gpu_is_an_error_only_if_requested() -> None:
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


def test_more_gpus_than_pairs_per_step_is_a_warning() -> None:
    cards = [Gpu(0, "a", 1, 1, 0), Gpu(1, "b", 1, 1, 0)]
    assert check_gpus(config(gpu_ids=[0, 1], batch_size=2, gradient_accumulation_steps=1), cards) == CheckResult()
    finding = check_gpus(config(gpu_ids=[0, 1], batch_size=1, gradient_accumulation_steps=1), cards)
    assert (finding.errors, len(finding.warnings)) == ((), 1)


def test_a_folder_that_is_not_writable_or_too_full_is_an_error(tmp_path: Path) -> None:
    fresh = Settings(data_dir=tmp_path / "new" / "deeper", models_dir=tmp_path)
    assert check_disk(config(), fresh, None, "cpu").passed
    huge = FACTS.model_copy(update={"parameters": 10**15})
    assert "are needed" in check_disk(config(use_lora=False, use_4bit=False), fresh, huge, "cpu").errors[0]
    (tmp_path / "file").touch()
    blocked = Settings(data_dir=tmp_path / "file" / "data", models_dir=tmp_path)
    assert "file is not writable" in check_disk(config(), blocked, None, "cpu").errors[0]


def test_disk_space_for_merged_weights_depends_on_their_precision(tmp_path: Path) -> None:
    def mib(device: str, **changes: Any) -> float:
        wanted = config(push_to_hub=True, **changes)
        huge = FACTS.model_copy(update={"parameters": 2**50, "sites": []})
        (error,) = check_disk(wanted, Settings(data_dir=tmp_path, models_dir=tmp_path), huge, device).errors
        return float(error.split(" MiB are free, ")[1].split()[0].replace(",", "")) - 256

    assert mib("cpu") == mib("cuda", use_4bit=False) == 2 * 2**30
    assert mib("cpu", use_4bit=False) == mib("cuda", use_4bit=False, dtype="float32") == 4 * 2**30
    assert mib("cuda", merge_dtype="float32") == 4 * 2**30
    assert mib("cpu", use_4bit=False, use_lora=False) > 8 * 2**30  # once saved, once copied for the upload


def test_merging_that_will_not_fit_into_ram_is_a_warning() -> None:
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


def test_unavailable_precision_is_an_error_and_unavailable_kernel_a_warning() -> None:
    assert check_precision(config(dtype="float16"), []).errors == (
        "dtype: float16 requires a GPU; use float32 or bfloat16",
    )
    flash = check_precision(config(attn_implementation="flash_attention_2"), [])
    assert flash.errors == ()
    assert flash.warnings == (
        "attn_implementation: flash_attention_2 is not available (it requires a GPU); the run uses auto",
    )
    assert check_precision(config(dtype="float16"), [Gpu(0, "a", 1, 1, 0)]).passed
