"""Check that the machine has what the run needs: GPUs, precision, memory for merging and disk space."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from merlina.domain.model_names import is_gguf
from merlina.domain.run_sizes import KEPT_CHECKPOINTS, OPTIMIZER_BYTES, merging_bytes
from merlina.domain.units import MIB, gib
from merlina.errors import Finding
from merlina.hardware.gpus import Gpu, count_in_words
from merlina.hardware.host import available_memory, existing_parent, free_disk
from merlina.preflight.memory_estimate import compute_bytes, trained_weights
from merlina.preflight.report import CheckResult, error, warning
from merlina.schemas.inspection import ModelFacts
from merlina.schemas.training.config import TrainingConfig
from merlina.settings import Settings

_MIN_FREE_DISK = 256 * MIB


def check_gpus(config: TrainingConfig, gpus: Sequence[Gpu]) -> CheckResult:
    """Return an error for unknown `gpu_ids`, and warnings for idle GPUs or a machine without any."""
    indices = [gpu.index for gpu in gpus]
    missing = [index for index in config.gpu_ids or [] if index not in indices]
    if missing:
        known = f"this machine has {count_in_words(gpus)}" if gpus else "this machine has no CUDA GPU"
        return error("gpu_ids", f"there is no GPU with the index {', '.join(map(str, missing))}; {known}")
    if len(config.gpu_ids or []) > config.pairs_per_step:
        return warning("gpu_ids", _describe_idle_gpus(config))
    if not indices:
        return warning(None, "This machine has no CUDA GPU: the run trains on the CPU, which suits only small models")
    return CheckResult()


def _describe_idle_gpus(config: TrainingConfig) -> str:
    return (
        f"{len(config.gpu_ids or [])} GPUs share the {config.pairs_per_step} pairs of a step, which leaves "
        "some of them idle; increase batch_size or gradient_accumulation_steps"
    )


def check_precision(config: TrainingConfig, gpus: Sequence[Gpu]) -> CheckResult:
    """Check that the machine supports the requested dtype and attention kernel."""
    if config.dtype == "float16" and not gpus:
        return error("dtype", "float16 requires a GPU; use float32 or bfloat16")
    if config.attn_implementation == "flash_attention_2" and not (gpus and find_spec("flash_attn")):
        missing = "the package flash-attn is not installed" if gpus else "it requires a GPU"
        message = f"flash_attention_2 is not available ({missing}); the run uses auto"
        return warning("attn_implementation", message)
    return CheckResult()


def check_merging(config: TrainingConfig, model: ModelFacts | None, device: str) -> CheckResult:
    """Check that the base model fits into RAM for merging, after the run's own model has been freed.

    A run on a GPU in 16 or 32 bits merges there, where the model evidently fits.
    """
    if model is None or not config.merges or (device == "cuda" and not config.weight_bits):
        return CheckResult(passed=None)
    number_bytes = merging_bytes_per_number(config, device)
    weights = model.parameters * number_bytes
    needed, free = merging_bytes(weights, from_gguf=is_gguf(config.base_model)), available_memory()
    if needed <= free:
        return CheckResult()
    message = (
        f"merging loads the base model into RAM in {8 * number_bytes} bits, about {gib(needed)}; "
        f"{gib(free)} are free. If that is still too little at the end of the run, only the adapter is uploaded"
    )
    return warning("merge_lora_before_upload", message)


def merging_bytes_per_number(config: TrainingConfig, device: str) -> int:
    """Return the bytes per weight during merging: the wider of the loaded and the saved precision."""
    loaded = 2 if config.weight_bits else compute_bytes(config, device)
    return max(loaded, _merged_bytes_per_number(config, device))


def _merged_bytes_per_number(config: TrainingConfig, device: str) -> int:
    """Return the bytes per weight of the saved merged model."""
    if config.merge_dtype == "auto":
        return 2 if config.weight_bits else compute_bytes(config, device)
    return 4 if config.merge_dtype == "float32" else 2


def check_disk(config: TrainingConfig, settings: Settings, model: ModelFacts | None, device: str) -> CheckResult:
    """Check that the folders are writable and their disks have space for a run on `device`, cpu or cuda."""
    checkpoints, finished = _bytes_to_write(config, model, device)
    needed = {settings.data_dir: checkpoints, settings.models_dir: finished}
    if _disk_of(settings.data_dir) == _disk_of(settings.models_dir):
        needed = dict.fromkeys(needed, checkpoints + finished)
    problems = [problem for folder, size in needed.items() if (problem := _disk_problem(folder, size))]
    unknown = ("disk_space_ok: the space is not checked, because the model's size is unknown",)
    return CheckResult(
        passed=not problems, findings=tuple(map(Finding, problems)), not_checked=() if model else unknown
    )


def check_output(target: Path) -> CheckResult:
    if not target.exists():
        return CheckResult()
    return warning("output_name", f"{target} exists; it is kept under another name when the run ends")


def _bytes_to_write(config: TrainingConfig, model: ModelFacts | None, device: str) -> tuple[float, float]:
    """Return the sizes of checkpoints and finished model in bytes; zeros if the model's size is unknown."""
    if model is None:
        return 0, 0
    trained, number_bytes = trained_weights(config, model), compute_bytes(config, device)
    adapter = trained * 4
    a_checkpoint = trained * (4 + OPTIMIZER_BYTES[config.optimizer_type])
    converted = model.parameters * number_bytes if config.weight_bits and is_gguf(config.base_model) else 0
    uploaded = 0
    if config.push_to_hub:
        # Besides the merged weights, the adapter is uploaded too.
        uploaded = adapter + (model.parameters * _merged_bytes_per_number(config, device) if config.merges else 0)
    # A checkpoint is removed only once the next one is complete; with each, the best model's checkpoint may be kept.
    kept = KEPT_CHECKPOINTS * (1 if config.load_best_at_end is None else 2)
    return (kept + 1) * a_checkpoint + converted, adapter + uploaded


def _disk_of(folder: Path) -> int:
    return existing_parent(folder).stat().st_dev


def _disk_problem(folder: Path, needed: float) -> str | None:
    existing = existing_parent(folder)
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        return f"{existing} is not writable, but the run writes to {folder}; change its permissions"
    free = free_disk(existing)
    if free < needed + _MIN_FREE_DISK:
        wanted = (needed + _MIN_FREE_DISK) / MIB
        return f"the disk of {folder} is too full: {free / MIB:,.0f} MiB are free, {wanted:,.0f} MiB are needed"
    return None
