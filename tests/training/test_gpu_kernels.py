"""Triton kernels compute what torch's operations compute (`interpreted_kernels.py`)."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


ROOT = Path(__file__).parents[2]
# Where `make test` installs triton: not beside torch, which would import it in every process.
TRITON = ROOT / ".venv" / "triton"


# The interpreter takes milliseconds for each row; a loaded machine needs several times the usual two minutes.
@pytest.mark.timeout(900)
@pytest.mark.skipif(platform.system() != "Linux", reason="triton has no wheel for this system")
def test_interpreted_kernels_give_the_results_of_float64_and_of_the_models_themselves() -> None:
    assert TRITON.is_dir(), "triton is not installed for this test; run `make .venv/.triton`"
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "--no-header", "tests/training/interpreted_kernels.py"]
    environment = {**os.environ, "PYTHONPATH": str(TRITON), "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    # Not captured: pytest shows the output of a failed test.
    result = subprocess.run(command, cwd=ROOT, env=environment, check=False)
    assert result.returncode == 0
