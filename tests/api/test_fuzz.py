"""Requests generated from the OpenAPI description: no response may be a 5xx, undocumented or violate its schema.

One random request to each endpoint always (FUZZ_CASES says how many); with `--long` also each boundary of each field,
which takes a minute.

make fuzz            both, with 1,000 random requests to each endpoint
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.harness import Server

CASES = os.environ.get("FUZZ_CASES", "1")


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("phases", ["fuzzing", pytest.param("examples,coverage", marks=pytest.mark.long)])
def test_generated_requests_are_answered_as_documented(
    new_server: Callable[..., Server], tmp_path: Path, phases: str
) -> None:
    server = new_server()
    done = subprocess.run(
        [
            Path(sys.executable).with_name("schemathesis"), "run", f"{server.url}/api/openapi.json",
            "--max-examples", CASES, "--phases", phases, "--continue-on-failure",
            "--request-timeout", "60",
            # What fits the schema may still be refused: a file that is not there, lengths that contradict each other.
            "--exclude-checks", "positive_data_acceptance",
        ],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-8000:]
    assert " passed" in done.stdout
    log = (server.root / "server.log").read_text()
    assert "Traceback" not in log
    assert server.process is not None
    assert server.process.poll() is None
