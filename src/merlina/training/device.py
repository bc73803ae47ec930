"""The device on which this process trains: its free memory, and the dtypes that it supports."""

from __future__ import annotations

import psutil
import torch

from merlina.errors import ModelError
from merlina.schemas.training.machine import Dtype


def training_device() -> torch.device:
    """Return the device on which this process trains."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def free_memory() -> int:
    """Return the free memory of the training device, in bytes."""
    return torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else psutil.virtual_memory().available


def compute_dtype(dtype: Dtype, device: torch.device) -> torch.dtype:
    """Return the dtype for a setting: auto is bfloat16 on a GPU that supports it, else float16, and float32 on a CPU.

    Raises ModelError for float16 on a CPU.
    """
    if dtype == "auto":
        if device.type != "cuda":
            return torch.float32
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if dtype == "float16" and device.type != "cuda":
        raise ModelError("dtype: float16 needs a GPU; use float32 or bfloat16 on this machine")
    chosen: torch.dtype = getattr(torch, dtype)
    return chosen


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name of a dtype as in settings and documents, such as bfloat16."""
    return str(dtype).removeprefix("torch.")
