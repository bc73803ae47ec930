"""Stands for the driver's library where there is no GPU: two cards, of which the second reports few values.

A server started with this folder on its PYTHONPATH takes it for `nvidia-ml-py`.
"""

from __future__ import annotations

from types import SimpleNamespace

NVML_TEMPERATURE_GPU = 0
_MB = 1024 * 1024


class NVMLError(Exception):
    pass


def nvmlInit() -> None:
    pass


def nvmlShutdown() -> None:
    pass


def nvmlDeviceGetCount() -> int:
    return 2


def nvmlDeviceGetHandleByIndex(index: int) -> int:
    return index


def nvmlDeviceGetName(handle: int) -> str:
    return ["NVIDIA Test 24", "NVIDIA Test 48"][handle]


def nvmlDeviceGetMemoryInfo(handle: int) -> SimpleNamespace:
    total, free = [(24_000, 3_000), (48_000, 40_000)][handle]
    return SimpleNamespace(total=total * _MB, free=free * _MB, used=(total - free) * _MB)


def nvmlDeviceGetUtilizationRates(handle: int) -> SimpleNamespace:
    return SimpleNamespace(gpu=_told(handle, 55))


def nvmlDeviceGetTemperature(handle: int, _sensor: int) -> int:
    return _told(handle, 61)


def nvmlDeviceGetPowerUsage(handle: int) -> int:
    return _told(handle, 145_250)


def nvmlDeviceGetCudaComputeCapability(handle: int) -> tuple[int, int]:
    return (8, 9)


def _told(handle: int, fact: int) -> int:
    if handle == 1:
        raise NVMLError("Not Supported")
    return fact
