"""Memory of the chat model: it takes none that a run holds or waits for, and gives way to a run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from merlina.errors import InsufficientMemoryError
from merlina.executors.chat_process import ChatProcess, Claim
from merlina.hardware.gpus import Gpu
from merlina.hardware.host import available_memory, resident_memory
from merlina.runs import RunFolder
from merlina.storage import jobs
from merlina.storage.database import Database
from merlina.storage.jobs import JobRecord

_log = logging.getLogger(__name__)
_MB = 1024**2
_HOW_TO_FORCE = "send force: true to load it all the same"


@dataclass(frozen=True)
class ChatMemory:
    """What is free, and who has it or waits for it."""

    database: Database
    chat_process: ChatProcess
    runs_dir: Path
    list_gpus: Callable[[], Sequence[Gpu]]

    def choose_gpu(self) -> int | None:
        """One that no job has or waits for, where there is one; of those the one with most memory. None without any."""
        gpus = self.list_gpus()
        wanted = self._wanted_gpus(gpus)
        unwanted = [gpu for gpu in gpus if gpu.index not in wanted]
        best = max(unwanted or gpus, key=lambda gpu: (gpu.memory_free_mb, -gpu.index), default=None)
        return best.index if best else None

    def admit(self, claim: Claim) -> None:
        """Raise InsufficientMemoryError if a job holds or waits for the claimed memory, or if too little is free.

        What the model that is loaded now holds counts as free: it goes before another is loaded.
        """
        gpus, gives_up = self.list_gpus(), self.chat_process.gives_up
        if claim.gpu is not None:
            if (claimed := self._wanted_gpus(gpus).get(claim.gpu)) is not None:
                raise InsufficientMemoryError(f"GPU {claim.gpu} {claimed}; wait for it, or {_HOW_TO_FORCE}")
            _refuse_beyond(_free_on_gpu(gpus, claim.gpu) + gives_up(claim.gpu), claim, f"GPU {claim.gpu}")
        _refuse_beyond(self._free_ram() + gives_up(None), claim, "RAM")

    def make_way(self, record: JobRecord) -> None:
        """Lets the model go where the run that is about to start would lack the memory; called before it starts."""
        status = self.chat_process.status
        claim = status.claim
        if claim is None or not _on_same_device(claim, record):
            return
        free = self._free_ram(record) if claim.gpu is None else _free_on_gpu(self.list_gpus(), claim.gpu)
        if status.state == "loading":
            free -= claim.needed_mb
        if record.memory_needed_mb is None or record.memory_needed_mb > free:
            _log.info(
                "the model of %s is let go: %s needs its memory", status.order and status.order.job_id, record.job_id
            )
            self.chat_process.release(f"{record.job_id} needs its memory")

    def _wanted_gpus(self, gpus: Sequence[Gpu]) -> dict[int, str]:
        """By index what a job does with it: trains on it, or waits for it."""
        with self.database.read() as connection:
            queued, running = jobs.queued(connection), jobs.running(connection)
        wanted: dict[int, str] = {}
        for record in reversed(queued):
            indices = record.config.get("gpu_ids") or [gpu.index for gpu in gpus]
            wanted |= dict.fromkeys(indices, f"is waited for by {record.job_id}")
        for record in running:
            wanted |= dict.fromkeys(record.gpus or [], f"is used by {record.job_id}")
        return wanted

    def _free_ram(self, without: JobRecord | None = None) -> int:
        """MiB, less what running jobs are still to take."""
        with self.database.read() as connection:
            running = jobs.running(connection)
        still_to_take = sum(
            max(0, record.memory_needed_mb - self._held_by(record))
            for record in running
            if record.gpus is None and record.memory_needed_mb is not None and record != without
        )
        return available_memory() // _MB - still_to_take

    def _held_by(self, record: JobRecord) -> int:
        worker = RunFolder(self.runs_dir / record.job_id).worker()
        return resident_memory(worker.pid) // _MB if worker and worker.is_alive() else 0


def _on_same_device(claim: Claim, record: JobRecord) -> bool:
    return claim.gpu in record.gpus if record.gpus is not None else claim.gpu is None


def _free_on_gpu(gpus: Sequence[Gpu], index: int) -> int:
    return next((gpu.memory_free_mb for gpu in gpus if gpu.index == index), 0)


def _refuse_beyond(free_mb: int, claim: Claim, place: str) -> None:
    if claim.needed_mb > free_mb:
        raise InsufficientMemoryError(
            f"The model needs about {claim.needed_mb:,} MiB of {place}, and {max(0, free_mb):,} MiB are free for it; "
            f"{_HOW_TO_FORCE}"
        )
