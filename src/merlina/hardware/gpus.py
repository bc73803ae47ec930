"""NVIDIA GPUs as reported by the driver (NVML)."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pynvml

from merlina.domain.units import MIB


@dataclass(frozen=True)
class Gpu:
    """One GPU; memory in MiB. None: the GPU does not report this value."""

    index: int
    name: str
    memory_total_mb: int
    memory_free_mb: int
    memory_used_mb: int
    utilization_percent: int | None = None
    temperature_c: int | None = None
    power_usage_w: float | None = None
    compute_capability: str | None = None


def list_gpus() -> list[Gpu]:
    """Return the GPUs this process may use; none without an NVIDIA driver.

    Indices are NVML's, in bus order. If CUDA_VISIBLE_DEVICES lists indices, only those GPUs are returned.
    """
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        visible = _visible_indices()
        found = range(pynvml.nvmlDeviceGetCount())
        return [_gpu(index) for index in found if visible is None or index in visible]
    finally:
        pynvml.nvmlShutdown()


def count_in_words(gpus: Sequence[Gpu]) -> str:
    """Return the number of GPUs and their indices, such as `2 GPUs, with the indices 0 and 1`."""
    *others, last = (str(gpu.index) for gpu in gpus)
    if not others:
        return f"1 GPU, with the index {last}"
    return f"{len(gpus)} GPUs, with the indices {', '.join(others)} and {last}"


def _visible_indices() -> set[int] | None:
    """Return the indices in CUDA_VISIBLE_DEVICES; None if it is unset or names devices by UUID."""
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is None:
        return None
    parts = [part.strip() for part in listed.split(",") if part.strip()]
    return {int(part) for part in parts} if all(part.isdigit() for part in parts) else None


def _gpu(index: int) -> Gpu:
    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    return Gpu(
        index=index,
        name=str(pynvml.nvmlDeviceGetName(handle)),
        memory_total_mb=int(memory.total) // MIB,
        memory_free_mb=int(memory.free) // MIB,
        memory_used_mb=int(memory.used) // MIB,
        utilization_percent=_optional(lambda: int(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu)),
        temperature_c=_optional(lambda: int(pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU))),
        power_usage_w=_optional(lambda: round(pynvml.nvmlDeviceGetPowerUsage(handle) / 1000, 1)),
        compute_capability=_optional(lambda: "{}.{}".format(*pynvml.nvmlDeviceGetCudaComputeCapability(handle))),
    )


def _optional(query: Callable[[], Any]) -> Any:
    """Return the result of a query that not every GPU supports; None if this one does not."""
    try:
        return query()
    except pynvml.NVMLError:
        return None
