"""The interface between the server and the part that runs its workers. All calls are quick and safe to repeat."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from merlina.processes import ProcessId
from merlina.run_folder.folder import RunFolder
from merlina.run_folder.order import RunOrder


class Executor(Protocol):
    """Starts, finds and ends workers. A run is identified by its folder, so that a restarted server finds its worker.

    `worker` is the worker's identity in the database, if known, for a run after its folder or lock was removed.
    """

    def launch(self, folder: RunFolder, order: RunOrder, gpus: Sequence[int] | None) -> None:
        """Start the worker, unless it is already alive. Raises OSError if it cannot be started."""

    def is_alive(self, folder: RunFolder, worker: ProcessId | None = None) -> bool:
        """Return whether the run's worker is alive, even if an earlier server started it."""

    def request_stop(self, folder: RunFolder) -> None:
        """Ask the worker to end after its current optimizer step; leaves `stop_file`. Raises OSError."""

    def request_pause(self, folder: RunFolder, reason: str) -> None:
        """Ask the worker to write a checkpoint after its current step and end; leaves `pause_file`. Raises OSError."""

    def is_detached(self, folder: RunFolder) -> bool:
        """Return whether a living worker no longer holds the lock of its run folder: it or the folder was removed."""

    def kill(self, folder: RunFolder, worker: ProcessId | None = None) -> None:
        """End the worker and all its children immediately."""

    def cause_of_death(self, folder: RunFolder) -> str:
        """Return why a dead worker died, if known, as a text that follows "The worker process "."""
