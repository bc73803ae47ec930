"""The end of a process without the interpreter's finalization."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

PROGRAM = """
import atexit, sys
from merlina.worker.fast_exit import exit_with

class Kept:
    def __del__(self):
        print("finalized")

kept = Kept()

def main():
    atexit.register(print, "exit function")
    print("output", end=" ")
    print("error", end=" ", file=sys.stderr)
    {end}

exit_with(main)
"""


@pytest.mark.parametrize(
    ("end", "code", "error"), [("return 3", 3, "error "), ("raise KeyError('row')", 1, "KeyError: 'row'\n")]
)
def test_exit_functions_and_all_output_precede_the_end_and_nothing_is_finalized(
    end: str, code: int, error: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(end=end)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (code, "output exit function\n")
    assert done.stderr.endswith(error)
