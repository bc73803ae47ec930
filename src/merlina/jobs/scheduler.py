"""What starts next: by priority, then age, with a free slot and free GPUs; and what makes way for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from merlina.hardware.gpus import Gpu
from merlina.jobs.lifecycle import PAUSABLE_STATES
from merlina.schemas.jobs import PRIORITY_NUMBER
from merlina.storage.jobs import JobRecord


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
    preempted: list[tuple[JobRecord, str]] = []
    making_way = {record.preempted_by: record.job_id for record in running if record.preempted_by}
    may_make_way = [record for record in reversed(running) if _may_make_way(record)]
    for record in queued:
        taken = set() if share_gpus else busy
        chosen, reason = _choose_gpus(record, gpus, taken)
        full = len(starts) >= slots
        if full or reason:
            waiting[record.job_id] = reason or "a free slot"
            if record.job_id in making_way:
                waiting[record.job_id] = f"{making_way[record.job_id]} to make way"
            elif record.priority == PRIORITY_NUMBER["high"]:
                chosen_ones = _who_makes_way(record, may_make_way, gpus, taken, full=full)
                preempted += [(one, record.job_id) for one in chosen_ones]
                may_make_way = [one for one in may_make_way if one not in chosen_ones]
            continue
        starts.append(Start(record, chosen))
        busy |= set(chosen or [])
    return Plan(starts, waiting, preempted)


def _may_make_way(record: JobRecord) -> bool:
    return (
        record.preemptible
        and record.priority == PRIORITY_NUMBER["low"]
        and record.state in PAUSABLE_STATES
        and record.stop_requested_at is None
        and record.pause_requested_at is None
    )


def _who_makes_way(
    record: JobRecord, candidates: Sequence[JobRecord], gpus: Sequence[Gpu], taken: set[int], *, full: bool
) -> list[JobRecord]:
    """The fewest of `candidates`, youngest first, whose end lets `record` start; none where it couldn't even then."""
    chosen: list[JobRecord] = []
    free = set(taken)
    for candidate in candidates:
        held = set(candidate.gpus or [])
        if _choose_gpus(record, gpus, free - held) == _choose_gpus(record, gpus, free) and (chosen or not full):
            continue
        chosen.append(candidate)
        free -= held
        if _choose_gpus(record, gpus, free)[1] is None:
            return chosen
    return []


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
