"""The interface between the server and the part that runs its workers. All calls are quick and safe to repeat."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from merlina.processes import ProcessId
from merlina.runs import RunFolder, RunOrder


class Executor(Protocol):
    """Starts, finds and ends workers. A run is identified by its folder, so a restarted server needs no other memory.

    `worker` is the worker's identity as far as the database knows it, in case the run folder or its lock is gone.
    """

    def launch(self, folder: RunFolder, order: RunOrder, gpus: Sequence[int] | None) -> None:
        """Start the worker, unless it lives already. Raises OSError if it cannot be started."""

    def is_alive(self, folder: RunFolder, worker: ProcessId | None = None) -> bool:
        """Return whether the run's worker lives, no matter which server started it."""

    def request_stop(self, folder: RunFolder) -> None:
        """Ask the worker to end after its current optimizer step; leaves `stop_file`. Raises OSError."""

    def request_pause(self, folder: RunFolder, reason: str) -> None:
        """Ask the worker to write a checkpoint after its current step and end; leaves `pause_file`. Raises OSError."""

    def is_detached(self, folder: RunFolder) -> bool:
        """Return whether a living worker no longer holds its run folder, because that or its lock was removed."""

    def kill(self, folder: RunFolder, worker: ProcessId | None = None) -> None:
        """End the worker and all its children immediately."""

    def cause_of_death(self, folder: RunFolder) -> str:
        """Return why a dead worker died, as far as known, in words that follow "The worker process "."""
