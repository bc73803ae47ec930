"""Triton kernels compute what torch's operations compute (`interpreted_kernels.py`)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


def test_interpreted_kernels_give_the_results_of_float64_and_of_the_models_themselves() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "--no-header", "tests/training/interpreted_kernels.py"]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    root = Path(__file__).parents[2]
    # Not captured: pytest shows the output of a failed test.
    result = subprocess.run(command, cwd=root, env=environment, check=False)
    assert result.returncode == 0
