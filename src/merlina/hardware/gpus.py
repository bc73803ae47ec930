"""NVIDIA GPUs as the driver sees them (NVML)."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pynvml

_MB = 1024 * 1024


@dataclass(frozen=True)
class Gpu:
    """One GPU; memory in MiB. None stands for what the card doesn't tell."""

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
    """All GPUs this process may use, or none where there is no NVIDIA driver.

    Indices are NVML's, by bus; where CUDA_VISIBLE_DEVICES lists some, the others are left out.
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
    """Return how many GPUs there are and their indices, such as `2 GPUs, with the indices 0 and 1`."""
    *others, last = (str(gpu.index) for gpu in gpus)
    if not others:
        return f"1 GPU, with the index {last}"
    return f"{len(gpus)} GPUs, with the indices {', '.join(others)} and {last}"


def _visible_indices() -> set[int] | None:
    """What CUDA_VISIBLE_DEVICES names by index; None where it is unset or names devices otherwise."""
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
        memory_total_mb=int(memory.total) // _MB,
        memory_free_mb=int(memory.free) // _MB,
        memory_used_mb=int(memory.used) // _MB,
        utilization_percent=_told(lambda: int(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu)),
        temperature_c=_told(lambda: int(pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU))),
        power_usage_w=_told(lambda: round(pynvml.nvmlDeviceGetPowerUsage(handle) / 1000, 1)),
        compute_capability=_told(lambda: "{}.{}".format(*pynvml.nvmlDeviceGetCudaComputeCapability(handle))),
    )


def _told(ask: Callable[[], Any]) -> Any:
    """A fact that not every card tells."""
    try:
        return ask()
    except pynvml.NVMLError:
        return None
