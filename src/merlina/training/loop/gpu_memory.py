"""How much of a GPU's memory a run may take: what was reported before it started."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def limited_gpu_memory(limit: int | None) -> Iterator[None]:
    """Let torch's allocator hold at most so many bytes: beyond them it raises OutOfMemoryError, as a full GPU does.

    It is for the trial of the largest pass, which is made smaller until it fits. Later passes are no larger, and must
    not fail over memory that is only fragmented while there is more of it.
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
