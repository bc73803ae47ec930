"""Which of the libraries' errors say that the disk is full, or that there is no more memory."""

from __future__ import annotations

import errno

import torch
from safetensors import SafetensorError

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


def disk_is_full(error: BaseException) -> bool:
    """Also by safetensors, whose error is no OSError, and by torch.save, which says where it broke off but not why."""
    if isinstance(error, OSError):
        return error.errno in _DISK_FULL
    text = str(error)
    if isinstance(error, SafetensorError):
        return any(f"(os error {number})" in text for number in _DISK_FULL)
    # Its files are read by a PytorchStreamReader; "unexpected pos" is the writer's, once a write has failed.
    return isinstance(error, RuntimeError) and ("PytorchStreamWriter" in text or "unexpected pos" in text)


def memory_short_of(error: BaseException) -> str | None:
    """Which memory there was too little of; None where it is another error."""
    if isinstance(error, torch.OutOfMemoryError):
        return "GPU memory"
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return "memory"
    # On a processor torch raises a plain RuntimeError.
    return "memory" if isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error) else None
