"""Response models of GPUs (docs/api.md, "GPUs")."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from merlina.schemas.base import ResponseModel

GpuStatus = Literal["success", "no_cuda"]


class GpuInfo(ResponseModel):
    """One GPU; null for values that the device does not report."""

    index: int
    name: str
    memory_total_mb: int
    memory_free_mb: int
    memory_used_mb: int
    utilization_percent: int | None
    temperature_c: int | None
    power_usage_w: float | None
    compute_capability: str | None


class GpuList(ResponseModel):
    """All GPUs; `no_cuda` and an empty list without an NVIDIA driver."""

    status: GpuStatus
    message: str | None = None
    gpus: list[GpuInfo]
    count: int


class GpuResponse(ResponseModel):
    """One GPU."""

    status: Literal["success"] = "success"
    gpu: GpuInfo


class AvailableGpus(ResponseModel):
    """Indices of the GPUs with at least `min_free_memory_mb` of free memory."""

    status: GpuStatus
    message: str | None = None
    available_gpus: list[int]
    count: int
    min_free_memory_mb: int = Field(description="MiB.")


class RecommendedGpu(ResponseModel):
    """The GPU with the most free memory."""

    status: Literal["success"] = "success"
    recommended_index: int
    gpu: GpuInfo
