"""What starts next: by priority, then age, with a free slot and free GPUs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from merlina.hardware.gpus import Gpu
from merlina.storage.jobs import JobRecord


@dataclass(frozen=True)
class Start:
    """A job that may start now, on these GPUs; None leaves the choice to the machine (it has none)."""

    record: JobRecord
    gpus: list[int] | None


@dataclass(frozen=True)
class Plan:
    """What one look at the queue gives: jobs to start, and what each of the others waits for."""

    starts: list[Start]
    waiting: dict[str, str]


def plan(
    queued: Sequence[JobRecord],
    running: Sequence[JobRecord],
    gpus: Sequence[Gpu],
    *,
    max_concurrent: int,
    share_gpus: bool,
) -> Plan:
    """Chooses among `queued` (in queue order). A job that waits for a busy GPU does not hold up one behind it."""
    slots = max_concurrent - len(running)
    busy = {index for record in running for index in record.gpus or []}
    starts: list[Start] = []
    waiting: dict[str, str] = {}
    for record in queued:
        if len(starts) >= slots:
            waiting[record.job_id] = "a free slot"
            continue
        chosen, reason = _choose_gpus(record, gpus, set() if share_gpus else busy)
        if reason:
            waiting[record.job_id] = reason
            continue
        starts.append(Start(record, chosen))
        busy |= set(chosen or [])
    return Plan(starts, waiting)


def _choose_gpus(record: JobRecord, gpus: Sequence[Gpu], busy: set[int]) -> tuple[list[int] | None, str | None]:
    wanted: list[int] | None = record.config.get("gpu_ids")
    if wanted:
        taken = sorted(set(wanted) & busy)
        return (None, f"GPU {', '.join(map(str, taken))}") if taken else (wanted, None)
    if not gpus:
        return None, None
    free = [gpu for gpu in gpus if gpu.index not in busy]
    if not free:
        return None, "a free GPU"
    return [max(free, key=lambda gpu: (gpu.memory_free_mb, -gpu.index)).index], None
