"""An executor without processes, for tests of the server's side: a test decides what each worker does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from merlina.executors.protocol import Executor
from merlina.processes import ProcessId
from merlina.run_folder.event_log import EventLog
from merlina.run_folder.folder import RunFolder
from merlina.run_folder.order import RunOrder
from merlina.schemas.events import KnownEvent


@dataclass
class FakeWorker:
    """A worker that acts only when a test calls its methods."""

    folder: RunFolder
    order: RunOrder | None = None
    is_alive: bool = True
    is_detached: bool = False
    cause_of_death: str = "was killed by SIGKILL"
    requests: list[str] = field(default_factory=list)
    kills: int = 0
    _seq: int = 0

    def append(self, *events: KnownEvent) -> None:
        """Append events to the run's log."""
        log = EventLog(self.folder.events_file, self._seq or (self.order.after_seq if self.order else 0))
        for event in events:
            self._seq = log.append(event)
        log.close()

    def exit(self, *last_events: KnownEvent) -> None:
        """Append the last events, if any, and die."""
        self.append(*last_events)
        self.is_alive = False


@dataclass
class FakeExecutor(Executor):
    """Keeps workers in memory by job id. Calls raise `launch_error` or `delivery_error` while a test sets it."""

    workers: dict[str, FakeWorker] = field(default_factory=dict)
    launch_error: OSError | None = None
    delivery_error: OSError | None = None

    def launch(self, folder: RunFolder, order: RunOrder, gpus: Sequence[int] | None) -> None:  # noqa: ARG002
        if self.launch_error is not None:
            raise self.launch_error
        if not self.is_alive(folder):
            self.workers[order.job_id] = FakeWorker(folder, order)

    def is_alive(self, folder: RunFolder, worker: ProcessId | None = None) -> bool:  # noqa: ARG002
        found = self.workers.get(folder.path.name)
        return found is not None and found.is_alive

    def is_detached(self, folder: RunFolder) -> bool:
        return self.workers[folder.path.name].is_detached

    def request_stop(self, folder: RunFolder) -> None:
        self._deliver(folder, "stop")
        folder.stop_file.touch()

    def request_pause(self, folder: RunFolder, reason: str) -> None:
        self._deliver(folder, "pause")
        folder.pause_file.write_text(reason)

    def kill(self, folder: RunFolder, worker: ProcessId | None = None) -> None:  # noqa: ARG002
        found = self.workers[folder.path.name]
        found.is_alive = False
        found.kills += 1

    def cause_of_death(self, folder: RunFolder) -> str:
        found = self.workers.get(folder.path.name)
        return found.cause_of_death if found is not None else "was never started"

    def _deliver(self, folder: RunFolder, request: str) -> None:
        if self.delivery_error is not None:
            raise self.delivery_error
        if (worker := self.workers.get(folder.path.name)) is not None:
            worker.requests.append(request)
