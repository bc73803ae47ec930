"""NVIDIA GPUs as the driver sees them (NVML)."""

from __future__ import annotations

from dataclasses import dataclass

import pynvml

_MB = 1024 * 1024


@dataclass(frozen=True)
class Gpu:
    """One GPU; memory in MiB."""

    index: int
    name: str
    memory_total_mb: int
    memory_free_mb: int


def list_gpus() -> list[Gpu]:
    """All GPUs, or none where there is no NVIDIA driver."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        return [_gpu(index) for index in range(pynvml.nvmlDeviceGetCount())]
    finally:
        pynvml.nvmlShutdown()


def _gpu(index: int) -> Gpu:
    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    return Gpu(
        index=index,
        name=str(pynvml.nvmlDeviceGetName(handle)),
        memory_total_mb=int(memory.total) // _MB,
        memory_free_mb=int(memory.free) // _MB,
    )
