"""What a helper process is doing, told to the server, so that it can name the cause where it has to end the process."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from merlina.errors import HelperError, MerlinaError


@dataclass(frozen=True)
class Phase:
    """A part of a call: its name for errors, the seconds it may take, and which error it is if it takes too much."""

    name: str
    seconds: float
    error: type[MerlinaError]


class Phases:
    """The current phase of this process. Only a helper reports phases; elsewhere they have no effect."""

    def __init__(self) -> None:
        self.report: Callable[[Phase], None] | None = None
        self.current = _CALL

    @contextlib.contextmanager
    def during(self, name: str, seconds: float, error: type[MerlinaError]) -> Iterator[None]:
        """Report a phase and, at its end, the one around it, whose seconds begin once more.

        Raises `error` in place of MemoryError.
        """
        before = self.current
        self._enter(Phase(name, seconds, error))
        try:
            yield
        except MemoryError:
            raise error(f"{name} takes more memory than it may, so it was ended") from None
        finally:
            # Where memory is short, the report may fail; the error that is on its way says more.
            with contextlib.suppress(MemoryError):
                self._enter(before)

    def _enter(self, phase: Phase) -> None:
        self.current = phase
        if self.report is not None:
            self.report(phase)


# Around all phases; the whole call has a time limit of its own.
_CALL = Phase("The call", 24 * 3600.0, HelperError)
PHASES = Phases()
