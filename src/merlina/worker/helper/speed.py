"""How fast this processor multiplies matrices, as runs do."""

from __future__ import annotations

import time
from functools import lru_cache

import torch

_ROWS = 512
_SECONDS = 0.15


@lru_cache
def product_rate(dtype: str, width: int) -> float:
    """Floating point operations a second of products [512, width] x [width, width] on as many threads as a run has."""
    kind = getattr(torch, dtype)
    left, right = torch.ones(_ROWS, width, dtype=kind), torch.ones(width, width, dtype=kind)
    _ = left @ right
    began, done = time.perf_counter(), 0
    while (spent := time.perf_counter() - began) < _SECONDS:
        _ = left @ right
        done += 1
    return done * 2 * _ROWS * width * width / spent
