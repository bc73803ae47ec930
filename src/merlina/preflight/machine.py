"""Does the machine have what the run asks for: GPUs, memory for the weights, disk for the result?"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterable, Sequence
from math import prod
from pathlib import Path

from merlina.hardware.gpus import Gpu
from merlina.hardware.host import available_memory, free_disk
from merlina.preflight.findings import Finding
from merlina.preflight.models import local_path
from merlina.schemas.training import TrainingConfig

_MIN_FREE_DISK = 256 * 1024**2
_GIB = 1024**3


def check_gpus(config: TrainingConfig, gpus: Sequence[Gpu]) -> Finding:
    """No GPU at all is only a warning, unless some are asked for by index."""
    there = [gpu.index for gpu in gpus]
    missing = [index for index in config.gpu_ids or [] if index not in there]
    if missing:
        known = f"this machine has {', '.join(map(str, there))}" if there else "this machine has no CUDA GPU"
        return Finding(passed=False, errors=(f"gpu_ids: there is no GPU {', '.join(map(str, missing))}; {known}",))
    if config.gpu_ids and len(config.gpu_ids) > 1:
        return Finding(passed=False, errors=(f"gpu_ids: {config.gpu_ids}: a run uses one GPU for now; name one",))
    if not there:
        return Finding(
            passed=False, warnings=("No CUDA GPU here: the run trains on the CPU, which suits small models",)
        )
    return Finding()


def check_memory(config: TrainingConfig, gpus: Sequence[Gpu]) -> Finding:
    """Whether the weights alone fit; what activations and optimizer need comes on top."""
    parameters = count_parameters(local_path(config.base_model))
    if parameters is None:
        return Finding()
    needed = parameters * _bytes_per_parameter(config, on_gpu=bool(gpus))
    chosen = [gpu for gpu in gpus if config.gpu_ids is None or gpu.index in config.gpu_ids]
    place = "GPU" if chosen else "RAM"
    free = max(gpu.memory_free_mb for gpu in chosen) * 1024**2 if chosen else available_memory()
    if needed <= free:
        return Finding()
    hint = "" if config.use_4bit else "; use_4bit needs about a quarter"
    left = f"and {free / _GIB:.1f} GiB of {place} are free{hint}"
    return Finding(
        passed=False,
        errors=(f"base_model: its {parameters / 1e9:.1f} billion weights alone need {needed / _GIB:.1f} GiB, {left}",),
    )


def check_disk(folders: Iterable[Path]) -> Finding:
    """Each folder can be written to, and its disk is not full."""
    errors = [problem for folder in folders if (problem := _disk_problem(folder))]
    return Finding(passed=not errors, errors=tuple(errors))


def check_output(target: Path) -> Finding:
    if not target.exists():
        return Finding()
    return Finding(
        warnings=(f"output_name: {target} exists; when the run ends it is kept beside under another name, not lost",)
    )


def count_parameters(model: Path) -> int | None:
    """Parameters in a local folder's safetensors files, read from their headers; None where there are none."""
    files = sorted(model.glob("*.safetensors")) if os.path.isdir(model) else []
    try:
        return sum(map(_parameters_in, files)) or None
    except (OSError, ValueError, struct.error):
        return None


def _parameters_in(file: Path) -> int:
    with file.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        header = json.loads(stream.read(min(length, 100 * 1024**2)))
    return sum(prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")


def _bytes_per_parameter(config: TrainingConfig, *, on_gpu: bool) -> float:
    if config.use_4bit:
        return 0.55
    if config.dtype == "float32" or (config.dtype == "auto" and not on_gpu):
        return 4.0
    return 2.0


def _disk_problem(folder: Path) -> str | None:
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        return f"{existing} can't be written to; {folder} is needed for the run"
    free = free_disk(existing)
    if free < _MIN_FREE_DISK:
        return (
            f"the disk of {folder} is full: {free / 1024**2:.0f} MiB are free, {_MIN_FREE_DISK // 1024**2} are needed"
        )
    return None
