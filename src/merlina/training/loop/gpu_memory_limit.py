"""Limit a run's GPU memory to the estimate reported before it started."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def limited_gpu_memory(limit: int | None) -> Iterator[None]:
    """Limit torch's allocator to `limit` bytes inside this context: beyond them it raises OutOfMemoryError.

    The memory probe uses this limit, and reduces the largest pass until it fits. Later passes are not larger, and must
    not fail because of fragmentation while the GPU has more memory; so the limit does not apply to them.
    """
    if limit is None or not torch.cuda.is_available():
        yield
        return
    total = torch.cuda.mem_get_info()[1]
    torch.cuda.set_per_process_memory_fraction(min(1.0, limit / total))
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
