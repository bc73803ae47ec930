"""The end of a process that has imported torch."""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
from collections.abc import Callable
from typing import NoReturn


def exit_with(main: Callable[[], int]) -> NoReturn:
    """Run `main` and end the process with the exit code that it returns, or with 1 if it raises an exception.

    The interpreter would free each object of all modules first, which takes up to half a second, while the run's lock
    and the GPU's memory stay taken. The operating system frees them at once. Functions that `main` registers with
    `atexit` run before; those registered earlier do not run.
    """
    code = 1

    def end() -> None:
        for stream in (sys.stdout, sys.stderr):
            # The disk may be full, or the reader of a pipe may have ended.
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)

    # Functions are called in reverse order, so this one is the last.
    atexit.register(end)
    code = main()
    sys.exit(code)
