"""What starts next: by priority, then age, with a free slot and free GPUs; and what makes way for it."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from merlina.domain.job_states import PAUSABLE_STATES
from merlina.hardware.gpus import Gpu
from merlina.jobs.output_folders import owner_among
from merlina.schemas.jobs import PRIORITY_NUMBER
from merlina.storage.jobs import JobRecord

_LEAST_FREE_MIB = 32


@dataclass(frozen=True)
class Start:
    """A job that may start now, on these GPUs; None leaves the choice to the machine (it has none)."""

    record: JobRecord
    gpus: list[int] | None


@dataclass(frozen=True)
class Plan:
    """What one look at the queue gives: jobs to start, what each of the others waits for, and who is to make way.

    `preempted` holds running jobs, each with the id of the job it makes way for.
    """

    starts: list[Start]
    waiting: dict[str, str]
    preempted: list[tuple[JobRecord, str]] = field(default_factory=list)


def shortage_of_disk(runs_dir: Path) -> str | None:
    """Return what a job waits for where the disk has no room even for a run's first files; None where it has."""
    free_mib = shutil.disk_usage(runs_dir).free >> 20
    if free_mib >= _LEAST_FREE_MIB:
        return None
    return f"disk space: {free_mib} MiB are free in {runs_dir}, and a run needs at least {_LEAST_FREE_MIB} MiB"


def plan(
    queued: Sequence[JobRecord],
    running: Sequence[JobRecord],
    gpus: Sequence[Gpu],
    *,
    max_concurrent: int,
    share_gpus: bool,
) -> Plan:
    """Chooses among `queued` (in queue order). A job that waits for a busy GPU does not hold up one behind it."""
    room = _Room(running, gpus, max_concurrent, share_gpus)
    waiting: dict[str, str] = {}
    preempted: list[tuple[JobRecord, str]] = []
    # Those that leave anyway come first, then the youngest, so that as few as possible are asked.
    may_leave = [record for record in running if _is_leaving(record)]
    may_leave += [record for record in reversed(running) if _may_make_way(record)]
    for record in queued:
        chosen, reason = room.offer(record)
        if reason is None:
            room.starts.append(Start(record, chosen))
            continue
        waiting[record.job_id] = reason
        if record.priority == PRIORITY_NUMBER["high"]:
            leaving = _who_leaves(record, may_leave, room)
            may_leave = [one for one in may_leave if one not in leaving]
            asked = [one for one in leaving if not _is_leaving(one)]
            preempted += [(one, record.job_id) for one in asked]
            making_way = [one.job_id for one in leaving if one in asked or one.preempted_by == record.job_id]
            if making_way:
                waiting[record.job_id] = f"{', '.join(making_way)} to pause"
    return Plan(room.starts, waiting, preempted)


@dataclass(frozen=True)
class _Room:
    """Slots and GPUs, and who has them: running jobs, and those that start now."""

    running: Sequence[JobRecord]
    gpus: Sequence[Gpu]
    slots: int
    share_gpus: bool
    starts: list[Start] = field(default_factory=list)

    def offer(self, record: JobRecord, without: Sequence[JobRecord] = ()) -> tuple[list[int] | None, str | None]:
        """The GPUs that `record` could have if the jobs `without` were gone, or what it would still wait for."""
        stay = [one for one in self.running if one not in without]
        held = [*(one.gpus for one in stay), *(start.gpus for start in self.starts)]
        busy = {index for indices in held for index in indices or []}
        chosen, reason = _choose_gpus(record, self.gpus, set() if self.share_gpus else busy)
        if len(stay) + len(self.starts) >= self.slots:
            return chosen, reason or "a free slot"
        owner = owner_among([*stay, *(start.record for start in self.starts)], record) if reason is None else None
        return chosen, reason or (f"{owner.job_id}, which saves into the same folder" if owner else None)


def _who_leaves(record: JobRecord, candidates: Sequence[JobRecord], room: _Room) -> list[JobRecord]:
    """The fewest of `candidates` whose end lets `record` start, the first ones where there is a choice.

    None of them where it couldn't start even then.
    """
    if room.offer(record, candidates)[1] is not None:
        return []
    chosen = list(candidates)
    for last in reversed(candidates):
        without_it = [one for one in chosen if one is not last]
        if room.offer(record, without_it)[1] is None:
            chosen = without_it
    return chosen


def _is_leaving(record: JobRecord) -> bool:
    return record.stop_requested_at is not None or record.pause_requested_at is not None


def _may_make_way(record: JobRecord) -> bool:
    return (
        record.preemptible
        and record.priority == PRIORITY_NUMBER["low"]
        and record.state in PAUSABLE_STATES
        and not _is_leaving(record)
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
