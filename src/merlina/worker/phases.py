"""What a helper process is doing, told to the server, so that it can name the cause where it has to end the process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from merlina.errors import HelperError, MerlinaError


@dataclass(frozen=True)
class Phase:
    """A part of a call: its name for errors, the seconds it may take, and which error it is if it takes too much."""

    name: str
    seconds: float
    error: type[MerlinaError]


class Phases:
    """The current phase of this process. Only a helper reports phases; elsewhere `begin` has no effect."""

    def __init__(self) -> None:
        self.report: Callable[[Phase], None] | None = None
        self.current = _CALL

    def begin(self, name: str, seconds: float, error: type[MerlinaError]) -> None:
        """Report the next phase, unless it is the current one. Its seconds count from now."""
        phase = Phase(name, seconds, error)
        if self.report is not None and phase != self.current:
            self.current = phase
            self.report(phase)

    def end(self) -> None:
        """Forget the current phase when a call is over."""
        self.current = _CALL


_CALL = Phase("the call", 0.0, HelperError)
PHASES = Phases()
