"""Does the machine have what the run asks for: GPUs, disk for checkpoints and result?"""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from merlina.domain.units import MIB, gib
from merlina.hardware.gpus import Gpu, count_in_words
from merlina.hardware.host import available_memory, existing_parent, free_disk
from merlina.preflight.findings import Finding
from merlina.preflight.memory_estimate import compute_bytes, trained_weights
from merlina.schemas.inspection import ModelFacts
from merlina.schemas.training import KEPT_CHECKPOINTS, OPTIMIZER_BYTES, TrainingConfig
from merlina.settings import Settings

_MIN_FREE_DISK = 256 * MIB


def check_gpus(config: TrainingConfig, gpus: Sequence[Gpu]) -> Finding:
    """No GPU at all is only a warning, unless some are asked for by index."""
    there = [gpu.index for gpu in gpus]
    missing = [index for index in config.gpu_ids or [] if index not in there]
    if missing:
        known = f"this machine has {count_in_words(gpus)}" if gpus else "this machine has no CUDA GPU"
        return Finding(
            passed=False, errors=(f"gpu_ids: there is no GPU with the index {', '.join(map(str, missing))}; {known}",)
        )
    if len(config.gpu_ids or []) > config.pairs_per_step:
        return Finding(passed=False, warnings=(_more_gpus_than_pairs(config),))
    if not there:
        return Finding(
            passed=False, warnings=("No CUDA GPU here: the run trains on the CPU, which suits small models",)
        )
    return Finding()


def _more_gpus_than_pairs(config: TrainingConfig) -> str:
    return (
        f"gpu_ids: {len(config.gpu_ids or [])} GPUs share the {config.pairs_per_step} pairs of a step, so that some "
        "have nothing to do; a larger batch_size or gradient_accumulation_steps gives each of them work"
    )


def check_precision(config: TrainingConfig, gpus: Sequence[Gpu]) -> Finding:
    """Whether dtype and attention kernel are to be had here."""
    if config.dtype == "float16" and not gpus:
        return Finding(passed=False, errors=("dtype: float16 needs a GPU; use float32 or bfloat16 on this machine",))
    if config.attn_implementation == "flash_attention_2" and not (gpus and find_spec("flash_attn")):
        missing = "the package flash-attn is not installed" if gpus else "it needs a GPU"
        return Finding(
            passed=False, warnings=(f"attn_implementation: no flash_attention_2 here ({missing}); the run uses auto",)
        )
    return Finding()


def check_merging(config: TrainingConfig, model: ModelFacts | None, device: str) -> Finding:
    """Whether RAM has room for the base model that the adapter is merged into, once the run's own model is freed.

    On a GPU it is merged there where it fits; a run in 4 or 8 bits shows that it need not.
    """
    if model is None or not config.merges or (device == "cuda" and not config.weight_bits):
        return Finding(passed=None)
    width = merging_width(config, device)
    needed, free = config.merging_bytes(model.parameters * width), available_memory()
    if needed <= free:
        return Finding()
    message = (
        f"merge_lora_before_upload: merging takes the base model into RAM in {8 * width} bits, about {gib(needed)}; "
        f"{gib(free)} are free. Unless there is room at the end of the run, the adapter alone is uploaded"
    )
    return Finding(passed=False, warnings=(message,))


def merging_width(config: TrainingConfig, device: str) -> int:
    """Bytes of a weight while an adapter is merged: the wider of what the base model is loaded in and saved as."""
    held = 2 if config.weight_bits else compute_bytes(config, device)
    return max(held, _merged_width(config, device))


def _merged_width(config: TrainingConfig, device: str) -> int:
    """Bytes of a merged weight as it is saved."""
    if config.merge_dtype == "auto":
        return 2 if config.weight_bits else compute_bytes(config, device)
    return 4 if config.merge_dtype == "float32" else 2


def check_disk(config: TrainingConfig, settings: Settings, model: ModelFacts | None, device: str) -> Finding:
    """Each folder can be written to, and its disk has room for what a run on `device`, cpu or cuda, puts there."""
    checkpoints, finished = _bytes_to_write(config, model, device)
    needed = {settings.data_dir: checkpoints, settings.models_dir: finished}
    if _disk_of(settings.data_dir) == _disk_of(settings.models_dir):
        needed = dict.fromkeys(needed, checkpoints + finished)
    problems = [problem for folder, size in needed.items() if (problem := _disk_problem(folder, size))]
    unknown = ("disk_space_ok: only whether the folders can be written, since the model's size is unknown",)
    return Finding(passed=not problems, errors=tuple(problems), not_checked=() if model else unknown)


def check_output(target: Path) -> Finding:
    if not target.exists():
        return Finding()
    return Finding(
        passed=False,
        warnings=(f"output_name: {target} exists; when the run ends it is kept beside under another name, not lost",),
    )


def _bytes_to_write(config: TrainingConfig, model: ModelFacts | None, device: str) -> tuple[float, float]:
    """For checkpoints and for the finished model; 0 where the model's size isn't known."""
    if model is None:
        return 0, 0
    trained, width = trained_weights(config, model), compute_bytes(config, device)
    adapter = trained * 4
    a_checkpoint = trained * (4 + OPTIMIZER_BYTES[config.optimizer_type])
    converted = model.parameters * width if config.weight_bits and config.base_model.lower().endswith(".gguf") else 0
    uploaded = 0
    if config.push_to_hub:
        # The adapter is uploaded beside merged weights, too.
        uploaded = adapter + (model.parameters * _merged_width(config, device) if config.merges else 0)
    # An old one is removed once the new one is complete; each one kept may need its best model beside it.
    kept = KEPT_CHECKPOINTS * (1 if config.load_best_at_end is None else 2)
    return (kept + 1) * a_checkpoint + converted, adapter + uploaded


def _disk_of(folder: Path) -> int:
    return existing_parent(folder).stat().st_dev


def _disk_problem(folder: Path, needed: float) -> str | None:
    existing = existing_parent(folder)
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        return f"{existing} can't be written to; {folder} is needed for the run"
    free = free_disk(existing)
    if free < needed + _MIN_FREE_DISK:
        wanted = (needed + _MIN_FREE_DISK) / MIB
        return f"the disk of {folder} is full: {free / MIB:,.0f} MiB are free, {wanted:,.0f} are needed"
    return None
