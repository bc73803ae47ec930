"""The operations of a layer's forward and backward pass, which a GPU's CPU has to launch one by one.

    PYTHONPATH=.venv/triton TRITON_INTERPRET=1 python benchmarks/operations.py

The engine computes as on a GPU: Triton's interpreter runs the kernels on the CPU, each counted as one operation.
Views and allocations are not counted, since they launch nothing. Two differences to a GPU remain: attention with a
dense mask takes the place of flash attention, and adapters' gradients are cast, which products on a GPU do themselves.
"""

from __future__ import annotations

import os
from collections import Counter

import common  # noqa: F401
import torch
from tests.training.operations import operations_per_layer

if __name__ == "__main__":
    kernels = os.environ.get("TRITON_INTERPRET") == "1"
    print(f"torch {torch.__version__}, {'GPU kernels in the interpreter' if kernels else 'operations of a CPU'}")
    for dropout in (0.0, 0.05):
        counted: Counter[str] = operations_per_layer(dropout)
        print(f"\ndropout {dropout}: {counted.total()} operations per layer, forward and backward")
        for name, count in counted.most_common():
            print(f"{count:5}  {name}")
