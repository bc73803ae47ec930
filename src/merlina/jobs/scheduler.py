"""The scheduler decides which jobs start (by priority, then age), which wait, and which running ones are preempted."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from merlina.domain.job_states import PAUSABLE_RUN_STATES
from merlina.hardware.gpus import Gpu
from merlina.jobs.output_folders import owner_among
from merlina.schemas.jobs import PRIORITY_NUMBER
from merlina.storage.jobs import JobRecord

_MIN_FREE_MIB = 32


@dataclass(frozen=True)
class Start:
    """A job that may start now, on these GPUs; None on a machine without GPUs."""

    record: JobRecord
    gpus: list[int] | None


@dataclass(frozen=True)
class Plan:
    """The jobs to start, what each other queued job waits for, and the running jobs to preempt.

    Each entry of `preempted` has the id of the job that preempts it.
    """

    starts: list[Start]
    waiting: dict[str, str]
    preempted: list[tuple[JobRecord, str]] = field(default_factory=list)


def disk_shortage(runs_dir: Path) -> str | None:
    """Return what jobs wait for if the disk lacks space for a run's first files; None if it has enough."""
    free_mib = shutil.disk_usage(runs_dir).free >> 20
    if free_mib >= _MIN_FREE_MIB:
        return None
    return f"disk space: {free_mib} MiB are free in {runs_dir}, and a run needs at least {_MIN_FREE_MIB} MiB"


def plan(
    queued: Sequence[JobRecord],
    running: Sequence[JobRecord],
    gpus: Sequence[Gpu],
    *,
    max_concurrent: int,
    share_gpus: bool,
) -> Plan:
    """Plan which of the `queued` jobs start, in queue order. One that waits for a busy GPU does not delay the next."""
    capacity = _Capacity(running, gpus, max_concurrent, share_gpus)
    waiting: dict[str, str] = {}
    preempted: list[tuple[JobRecord, str]] = []
    # Runs that end anyway come first, then the youngest ones, so that as few as possible are preempted.
    candidates = [record for record in running if _is_ending(record)]
    candidates += [record for record in reversed(running) if _is_preemptible(record)]
    for record in queued:
        chosen, reason = capacity.offer(record)
        if reason is None:
            capacity.starts.append(Start(record, chosen))
            continue
        waiting[record.job_id] = reason
        if record.priority == PRIORITY_NUMBER["high"]:
            leaving = _choose_preempted(record, candidates, capacity)
            candidates = [one for one in candidates if one not in leaving]
            new = [one for one in leaving if not _is_ending(one)]
            preempted += [(one, record.job_id) for one in new]
            pausing = [one.job_id for one in leaving if one in new or one.preempted_by == record.job_id]
            if pausing:
                waiting[record.job_id] = f"{', '.join(pausing)} to pause"
    return Plan(capacity.starts, waiting, preempted)


@dataclass(frozen=True)
class _Capacity:
    """Slots and GPUs, and the jobs that occupy them: running ones, and those that start now."""

    running: Sequence[JobRecord]
    gpus: Sequence[Gpu]
    slots: int
    share_gpus: bool
    starts: list[Start] = field(default_factory=list)

    def offer(self, record: JobRecord, excluding: Sequence[JobRecord] = ()) -> tuple[list[int] | None, str | None]:
        """Return the GPUs that `record` gets if the jobs `excluding` end, or what it would still wait for."""
        remaining = [one for one in self.running if one not in excluding]
        held = [*(one.gpus for one in remaining), *(start.gpus for start in self.starts)]
        busy = {index for indices in held for index in indices or []}
        chosen, reason = _choose_gpus(record, self.gpus, set() if self.share_gpus else busy)
        if len(remaining) + len(self.starts) >= self.slots:
            return chosen, reason or "a free slot"
        owner = owner_among([*remaining, *(start.record for start in self.starts)], record) if reason is None else None
        return chosen, reason or (f"{owner.job_id}, which saves into the same folder" if owner else None)


def _choose_preempted(record: JobRecord, candidates: Sequence[JobRecord], capacity: _Capacity) -> list[JobRecord]:
    """Return the fewest of `candidates` that must end so that `record` can start, preferring the first ones.

    Return none of them if it could not start even then.
    """
    if capacity.offer(record, candidates)[1] is not None:
        return []
    chosen = list(candidates)
    for last in reversed(candidates):
        without_it = [one for one in chosen if one is not last]
        if capacity.offer(record, without_it)[1] is None:
            chosen = without_it
    return chosen


def _is_ending(record: JobRecord) -> bool:
    return record.stop_requested_at is not None or record.pause_requested_at is not None


def _is_preemptible(record: JobRecord) -> bool:
    return (
        record.preemptible
        and record.priority == PRIORITY_NUMBER["low"]
        and record.state in PAUSABLE_RUN_STATES
        and not _is_ending(record)
    )


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
