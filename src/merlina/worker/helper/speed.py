"""Speed of this processor, measured by matrix products as in a run."""

from __future__ import annotations

import time
from functools import lru_cache

import torch

from merlina.schemas.operations import MeasureMatrixSpeed

_ROWS = 512
_SECONDS = 0.15


@lru_cache
def measure_matrix_speed(operation: MeasureMatrixSpeed) -> float:
    """Return the floating-point operations per second of products [512, width] x [width, width] on all threads."""
    dtype, width = getattr(torch, operation.dtype), operation.width
    left, right = torch.ones(_ROWS, width, dtype=dtype), torch.ones(width, width, dtype=dtype)
    _ = left @ right  # warm-up
    began, products = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - began) < _SECONDS:
        _ = left @ right
        products += 1
    return products * 2 * _ROWS * width * width / elapsed
