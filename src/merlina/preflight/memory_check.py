"""Check that a run fits into the free memory, and suggest settings that reduce what it needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from merlina.domain.run_sizes import shards_weights
from merlina.domain.units import MIB, gib
from merlina.hardware.gpus import Gpu
from merlina.hardware.host import available_memory
from merlina.preflight.memory_estimate import compute_bytes, estimate, expected_peak, weight_bytes
from merlina.preflight.report import CheckResult, error
from merlina.schemas.inspection import DataFacts, ModelFacts
from merlina.schemas.training.config import TrainingConfig
from merlina.schemas.validation import MemoryEstimate


def check_memory(
    config: TrainingConfig,
    model: ModelFacts | None,
    data: DataFacts | None,
    gpus: Sequence[Gpu],
    reclaimable_mb: Callable[[int | None], int],
) -> tuple[CheckResult, MemoryEstimate | None]:
    """Check that the run fits into the free memory; with several GPUs, into that of each.

    `reclaimable_mb` returns what is freed before the run starts, in MiB: of the GPU with this index, or of RAM (None).
    """
    if model is None:
        return CheckResult(passed=False, not_checked=("vram_sufficient: the model's size is unknown",)), None
    freed = [replace(gpu, memory_free_mb=gpu.memory_free_mb + reclaimable_mb(gpu.index)) for gpu in gpus]
    gpu = _decisive_gpu(config, freed)
    device, place = ("cuda", f"GPU {gpu.index}") if gpu else ("cpu", "RAM")
    free = gpu.memory_free_mb * MIB if gpu else available_memory() + reclaimable_mb(None) * MIB
    gpus_used = len(config.gpu_ids or []) or 1
    whole = weight_bytes(config, model, compute_bytes(config, device))
    num_shards = gpus_used if config.is_shardable and shards_weights(gpus_used, whole, free) else 1
    minimum = estimate(config, model, data, device, num_shards)
    expected = expected_peak(config, model, data, device, num_shards, free)
    components = sorted(expected.components.items(), key=lambda component: -component[1])
    shown = MemoryEstimate(
        place=place,
        needed_mb=round(expected.total / MIB),
        minimum_mb=round(minimum.total / MIB),
        expected_mb=round(expected.total / MIB),
        free_mb=round(free / MIB),
        parts_mb={name: round(size / MIB) for name, size in components},
    )
    if minimum.total <= free:
        return CheckResult(), shown
    largest, size = components[0]
    message = (
        f"the run needs at least {gib(minimum.total)} of {place}, but {gib(free)} are free. "
        f"Largest component: {largest} ({gib(size)}). {_suggest_savings(config, model, data, device, num_shards)}"
    )
    if gpus_used > 1 and not config.use_lora:
        message += ". More GPUs do not help: without LoRA each of them holds the whole model"
    return error("memory", message), shown


def _decisive_gpu(config: TrainingConfig, gpus: Sequence[Gpu]) -> Gpu | None:
    """Return the requested GPU with the least free memory; without `gpu_ids`, the GPU with the most."""
    if config.gpu_ids is None:
        return max(gpus, key=lambda gpu: gpu.memory_free_mb, default=None)
    requested = [gpu for gpu in gpus if gpu.index in (config.gpu_ids or [])]
    return min(requested, key=lambda gpu: gpu.memory_free_mb, default=None)


def _suggest_savings(
    config: TrainingConfig, model: ModelFacts, data: DataFacts | None, device: str, num_shards: int
) -> str:
    """Return the changes of settings that save most, with the remaining peak of each."""
    now = estimate(config, model, data, device, num_shards).total
    left = [
        (estimate(changed, model, data, device, num_shards if changed.weight_bits is None else 1).total, name)
        for name, changes, applies in _SAVINGS
        if applies(config) and (changed := config.model_copy(update=changes))
    ]
    helping = sorted((total, name) for total, name in left if total < 0.98 * now)
    if not helping:
        return "Use a smaller base model"
    return "To reduce it: " + ", ".join(f"{name} ({gib(total)})" for total, name in helping[:4])


_Applies = Callable[[TrainingConfig], bool]
_SAVINGS: tuple[tuple[str, dict[str, Any], _Applies], ...] = (
    ("attn_implementation auto", {"attn_implementation": "auto"}, lambda config: config.attn_implementation != "auto"),
    ("use_4bit", {"use_4bit": True}, lambda config: config.use_lora and config.weight_bits is None),
    ("use_lora", {"use_lora": True}, lambda config: not config.use_lora),
    ("use_dora false", {"use_dora": False}, lambda config: config.use_lora and config.use_dora),
    ("gradient_checkpointing", {"gradient_checkpointing": True}, lambda config: not config.gradient_checkpointing),
    ("dtype bfloat16", {"dtype": "bfloat16"}, lambda config: config.dtype == "float32"),
    ("optimizer_type adamw_8bit", {"optimizer_type": "adamw_8bit"}, lambda config: "8bit" not in config.optimizer_type),
    ("max_length 512", {"max_length": 512, "max_prompt_length": 256}, lambda config: config.max_length > 512),
)
