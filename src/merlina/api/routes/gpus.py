"""The machine's GPUs (docs/api.md, "GPUs"). Without CUDA, lists are empty and requests for one GPU are 404."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

from fastapi import APIRouter, Query

from merlina.errors import NotFoundError
from merlina.hardware.gpus import Gpu, count_in_words, list_gpus
from merlina.schemas.hardware import AvailableGpus, GpuInfo, GpuList, GpuResponse, RecommendedGpu
from merlina.schemas.system import ErrorResponse

router = APIRouter(prefix="/gpu", tags=["gpus"])

_NO_CUDA = "This machine has no CUDA GPU"


@router.get("/list")
def list_all() -> GpuList:
    """List all GPUs with their memory, utilization and temperature."""
    gpus = list_gpus()
    if not gpus:
        return GpuList(status="no_cuda", message=_NO_CUDA, gpus=[], count=0)
    return GpuList(status="success", gpus=[_info(gpu) for gpu in gpus], count=len(gpus))


@router.get("/available")
def available(min_free_memory_mb: Annotated[int, Query(ge=0, le=2**31)] = 4000) -> AvailableGpus:
    """List the GPUs with at least this much free memory, in MiB."""
    gpus = list_gpus()
    found = [gpu.index for gpu in gpus if gpu.memory_free_mb >= min_free_memory_mb]
    return AvailableGpus(
        status="success" if gpus else "no_cuda",
        message=None if gpus else _NO_CUDA,
        available_gpus=found,
        count=len(found),
        min_free_memory_mb=min_free_memory_mb,
    )


@router.get("/recommended", responses={404: {"model": ErrorResponse, "description": "The machine has no GPU"}})
def recommended() -> RecommendedGpu:
    """Return the GPU with the most free memory."""
    best = max(_require_gpus(), key=lambda gpu: (gpu.memory_free_mb, -gpu.index))
    return RecommendedGpu(recommended_index=best.index, gpu=_info(best))


@router.get("/{index}")
def one(index: int) -> GpuResponse:
    """Return the GPU with this index."""
    gpus = _require_gpus()
    found = next((gpu for gpu in gpus if gpu.index == index), None)
    if found is None:
        raise NotFoundError(f"There is no GPU with the index {index}; this machine has {count_in_words(gpus)}")
    return GpuResponse(gpu=_info(found))


def _require_gpus() -> list[Gpu]:
    gpus = list_gpus()
    if not gpus:
        raise NotFoundError(_NO_CUDA)
    return gpus


def _info(gpu: Gpu) -> GpuInfo:
    return GpuInfo(**asdict(gpu))
