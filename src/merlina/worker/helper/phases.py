"""Phases and progress of a call, which a helper process reports to its caller.

By the phase, the caller can name the cause when it ends the process.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from merlina.errors import HelperError, MerlinaError


@dataclass(frozen=True)
class Phase:
    """A part of a call: its name for messages, its time limit, and the error for exceeding that or a memory limit."""

    name: str
    seconds: float
    error: type[MerlinaError]


class Phases:
    """The current phase of this process. Only helper processes report it; in others, it only converts MemoryError."""

    def __init__(self) -> None:
        self.report: Callable[[Phase], None] | None = None
        self.report_rows: Callable[[int], None] | None = None
        self.current = _CALL

    @contextlib.contextmanager
    def during(self, name: str, seconds: float, error: type[MerlinaError]) -> Iterator[None]:
        """Report a phase and, at its end, the enclosing one; its time limit then starts again.

        Raises `error` instead of MemoryError.
        """
        enclosing = self.current
        self._enter(Phase(name, seconds, error))
        try:
            yield
        except MemoryError:
            raise error(f"{name} exceeded its memory limit and was ended") from None
        finally:
            # When memory is short the report may fail, too; the error being raised is more informative.
            with contextlib.suppress(MemoryError):
                self._enter(enclosing)

    def read(self, rows: int) -> None:
        """Report the number of rows that were read so far."""
        if self.report_rows is not None:
            self.report_rows(rows)

    def _enter(self, phase: Phase) -> None:
        self.current = phase
        if self.report is not None:
            self.report(phase)


# Outside all phases: the call as a whole has a time limit of its own.
_CALL = Phase("The call", 24 * 3600.0, HelperError)
PHASES = Phases()
