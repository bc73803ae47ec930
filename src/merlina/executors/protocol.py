"""What the server asks of whatever runs its jobs. All calls are quick, and safe to repeat."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from merlina.processes import ProcessId
from merlina.runs import RunFolder, RunOrder


class Executor(Protocol):
    """Starts, finds and ends workers. A run is named by its folder, so a restarted server needs no other memory."""

    def launch(self, folder: RunFolder, order: RunOrder, gpus: Sequence[int] | None) -> None:
        """Starts the worker. Does nothing where one lives already. Raises OSError where it can't be started."""

    def is_alive(self, folder: RunFolder, worker: ProcessId | None = None) -> bool:
        """Whether the run's worker lives, whichever server started it.

        `worker` is who it is as far as is known, for where its run folder or its lock is gone.
        """

    def request_stop(self, folder: RunFolder) -> None:
        """Asks the worker to end after its optimizer step."""

    def request_pause(self, folder: RunFolder, reason: str) -> None:
        """Asks the worker to write a checkpoint after its optimizer step and end, to be gone on with later."""

    def is_detached(self, folder: RunFolder) -> bool:
        """Whether a worker that lives no longer holds its run folder, because that or its lock was removed."""

    def kill(self, folder: RunFolder, worker: ProcessId | None = None) -> None:
        """Ends the worker and all its children at once."""

    def cause_of_death(self, folder: RunFolder) -> str:
        """Why a dead worker died, as far as it can be known, in words that follow 'The worker process '."""
