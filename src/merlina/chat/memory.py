"""Memory of the chat model: it gets only what no run uses or waits for, and is unloaded if a run needs it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from merlina.domain.units import MIB
from merlina.errors import InsufficientMemoryError
from merlina.executors.chat_process import ChatProcess, Claim
from merlina.hardware.gpus import Gpu
from merlina.hardware.host import available_memory, resident_memory
from merlina.run_folder.folder import RunFolder
from merlina.storage import jobs
from merlina.storage.database import Database
from merlina.storage.jobs import JobRecord

_log = logging.getLogger(__name__)
_HOW_TO_FORCE = "send force: true to load it anyway"


@dataclass(frozen=True)
class ChatMemory:
    """Decides on which device the chat model may be loaded, and unloads it for runs."""

    database: Database
    chat_process: ChatProcess
    runs_dir: Path
    list_gpus: Callable[[], Sequence[Gpu]]

    def choose_gpu(self) -> int | None:
        """Return the GPU with the most free memory, preferring those that no job uses or needs; None without GPUs."""
        gpus = self.list_gpus()
        wanted = self._wanted_gpus(gpus)
        unwanted = [gpu for gpu in gpus if gpu.index not in wanted]
        best = max(unwanted or gpus, key=lambda gpu: (gpu.memory_free_mb, -gpu.index), default=None)
        return best.index if best else None

    def admit(self, claim: Claim) -> None:
        """Raise InsufficientMemoryError if a job uses or waits for the claimed memory, or if too little is free.

        The memory of the currently loaded model counts as free, since it is unloaded before another one is loaded.
        """
        gpus, reclaimable_mb = self.list_gpus(), self.chat_process.reclaimable_mb
        if claim.gpu is not None:
            if (use := self._wanted_gpus(gpus).get(claim.gpu)) is not None:
                raise InsufficientMemoryError(f"GPU {claim.gpu} {use}; wait until it is free, or {_HOW_TO_FORCE}")
            _check_fits(claim, _free_on_gpu(gpus, claim.gpu) + reclaimable_mb(claim.gpu), f"GPU {claim.gpu}")
        _check_fits(claim, self._free_ram() + reclaimable_mb(None), "RAM")

    def unload_for(self, record: JobRecord) -> None:
        """Unload the model if the run that is about to start would otherwise lack memory."""
        status = self.chat_process.status
        claim = status.claim
        if claim is None or not _on_same_device(claim, record):
            return
        free = self._free_ram(record.job_id) if claim.gpu is None else _free_on_gpu(self.list_gpus(), claim.gpu)
        if status.state == "loading":
            free -= claim.needed_mb
        if record.memory_needed_mb is None or record.memory_needed_mb > free:
            _log.info("unloading the chat model of %s: %s needs its memory", status.job_id, record.job_id)
            self.chat_process.unload(f"{record.job_id} needs its memory")

    def _wanted_gpus(self, gpus: Sequence[Gpu]) -> dict[int, str]:
        """Return by GPU index which job uses it or waits for it, in words."""
        with self.database.read() as connection:
            queued, running = jobs.queued(connection), jobs.running(connection)
        wanted: dict[int, str] = {}
        for record in reversed(queued):
            indices = record.config.get("gpu_ids") or [gpu.index for gpu in gpus]
            wanted |= dict.fromkeys(indices, f"is reserved for the queued job {record.job_id}")
        for record in running:
            wanted |= dict.fromkeys(record.gpus or [], f"is used by {record.job_id}")
        return wanted

    def _free_ram(self, starting_id: str | None = None) -> int:
        """Return the MiB that are available, less what running jobs other than `starting_id` have yet to allocate."""
        with self.database.read() as connection:
            running = jobs.running(connection)
        yet_to_allocate = sum(
            max(0, record.memory_needed_mb - self._resident_mb(record))
            for record in running
            if record.gpus is None and record.memory_needed_mb is not None and record.job_id != starting_id
        )
        return available_memory() // MIB - yet_to_allocate

    def _resident_mb(self, record: JobRecord) -> int:
        worker = RunFolder(self.runs_dir / record.job_id).worker()
        return resident_memory(worker.pid) // MIB if worker and worker.is_alive() else 0


def _on_same_device(claim: Claim, record: JobRecord) -> bool:
    return claim.gpu in record.gpus if record.gpus is not None else claim.gpu is None


def _free_on_gpu(gpus: Sequence[Gpu], index: int) -> int:
    return next((gpu.memory_free_mb for gpu in gpus if gpu.index == index), 0)


def _check_fits(claim: Claim, free_mb: int, device: str) -> None:
    if claim.needed_mb > free_mb:
        raise InsufficientMemoryError(
            f"The model needs about {claim.needed_mb:,} MiB of {device}, but only {max(0, free_mb):,} MiB are free; "
            f"{_HOW_TO_FORCE}"
        )
