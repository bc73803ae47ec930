"""A subscriber's position: where events come from, in which batches, and what is skipped."""

from __future__ import annotations

import asyncio
from pathlib import Path

from merlina.jobs.broadcast import Broadcast
from merlina.jobs.cursor import EventCursor
from merlina.run_folder.event_log import EventLog
from merlina.schemas.events import Event, Progress
from tests.jobs.records import job


def written(path: Path, count: int) -> list[Event]:
    log = EventLog(path)
    for step in range(1, count + 1):
        log.append(Progress(step=step, total_steps=count))
    log.close()
    return [Progress(seq=step, time=0.0, step=step, total_steps=count) for step in range(1, count + 1)]


def batches(cursor: EventCursor, last: int) -> list[list[int]]:
    async def read() -> list[list[int]]:
        return [[event.seq for event in batch] async for batch in cursor.until(last)]

    return asyncio.run(read())


def test_recent_events_come_from_memory_and_the_log_is_not_read(tmp_path: Path) -> None:
    broadcast = Broadcast()
    broadcast.publish(job(last_seq=3), [Progress(seq=n, time=0.0, step=n, total_steps=3) for n in (1, 2, 3)])
    cursor = EventCursor(broadcast, "job_1", tmp_path / "none", 1)
    assert batches(cursor, 3) == [[2, 3]]
    assert cursor.seq == 3


def test_batches_are_bounded_and_end_at_the_requested_event(tmp_path: Path) -> None:
    broadcast = Broadcast()
    broadcast.publish(job(last_seq=600), written(tmp_path / "log", 600))
    cursor = EventCursor(broadcast, "job_1", tmp_path / "log", 0)
    found = batches(cursor, 590)
    assert [len(batch) for batch in found] == [256, 256, 78]
    assert batches(cursor, 590) == []
    assert batches(cursor, 600) == [list(range(591, 601))]


def test_a_cursor_without_a_broadcast_reads_the_log_and_skips_damaged_lines(tmp_path: Path) -> None:
    path = tmp_path / "log"
    written(path, 3)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + b"damaged\n" + lines[1] + lines[1] + lines[2])
    assert batches(EventCursor(Broadcast(), "job_1", path, 0), 3) == [[1, 2, 3]]


def test_a_log_that_ends_early_ends_the_reading(tmp_path: Path) -> None:
    written(tmp_path / "log", 2)
    assert batches(EventCursor(Broadcast(), "job_1", tmp_path / "log", 0), 5) == [[1, 2]]
    assert batches(EventCursor(Broadcast(), "job_1", tmp_path / "none", 0), 5) == []
