"""The selection of `make test-fast`, which the whole suite does not use."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_fast_tests_can_be_collected_without_torch() -> None:
    command = [sys.executable, "-m", "pytest", "--fast", "-n", "0", "--collect-only", "--quiet"]
    collected = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert collected.returncode == 0, collected.stdout + collected.stderr
