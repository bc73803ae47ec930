"""Recognition of the libraries' errors for a full disk and exhausted memory."""

from __future__ import annotations

import errno

import torch
from safetensors import SafetensorError

from merlina.errors import DISK_FULL_ERRNOS, is_disk_full


def disk_is_full(error: BaseException) -> bool:
    """Return whether the disk is full, also if safetensors raised another error than OSError or torch.save hid it."""
    if isinstance(error, OSError):
        return is_disk_full(error)
    text = str(error)
    if isinstance(error, SafetensorError):
        return any(f"(os error {number})" in text for number in DISK_FULL_ERRNOS)
    # torch reads files with a PytorchStreamReader; "unexpected pos" comes from its writer, once a write has failed.
    return isinstance(error, RuntimeError) and ("PytorchStreamWriter" in text or "unexpected pos" in text)


def exhausted_memory(error: BaseException) -> str | None:
    """Return the name of the memory that was exhausted; None if the error has another cause."""
    if isinstance(error, torch.OutOfMemoryError):
        return "GPU memory"
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return "memory"
    # On a CPU, torch raises a plain RuntimeError.
    return "memory" if isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error) else None
