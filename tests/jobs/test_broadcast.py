from __future__ import annotations

import asyncio
import threading

from merlina.jobs.broadcast import Broadcast
from merlina.jobs.cursor import EventCursor
from merlina.run_folder.event_log import EventLog
from merlina.schemas.events import EVENT, Progress
from tests.jobs.records import job


def progress(seq: int):
    return EVENT.validate_python({"seq": seq, "time": 0.0, "type": "progress", "step": seq, "total_steps": 9})


def test_a_waiter_is_woken_from_another_thread_and_misses_nothing() -> None:
    broadcast = Broadcast()

    async def wait() -> int:
        seen, version = 0, broadcast.version("job_1")
        while seen < 200:
            await asyncio.wait_for(broadcast.changed("job_1", version), 10)
            version = broadcast.version("job_1")
            latest = broadcast.latest("job_1")
            assert latest is not None
            seen = latest.last_seq
        return seen

    def publish() -> None:
        for seq in range(1, 201):
            broadcast.publish(job(last_seq=seq), [progress(seq)])

    threading.Timer(0.05, publish).start()
    assert asyncio.run(wait()) == 200


def test_a_publication_between_look_and_wait_is_not_slept_over() -> None:
    broadcast = Broadcast()

    async def wait() -> None:
        version = broadcast.version("job_1")
        broadcast.publish(job())
        await asyncio.wait_for(broadcast.changed("job_1", version), 5)

    asyncio.run(wait())


def test_a_reader_that_fell_behind_takes_the_rest_from_the_log(tmp_path) -> None:
    broadcast, path = Broadcast(), tmp_path / "events.jsonl"
    log = EventLog(path)
    for seq in range(1, 5001):
        log.append(Progress(step=seq, total_steps=5000))
        broadcast.publish(job(last_seq=seq), [progress(seq)])
    log.close()
    assert broadcast.recent("job_1", after=0) is None

    async def read(after: int, until: int) -> list[int]:
        cursor = EventCursor(broadcast, "job_1", path, after)
        return [event.seq async for batch in cursor.until(until) for event in batch]

    assert asyncio.run(read(0, 5000)) == list(range(1, 5001))
    assert asyncio.run(read(1234, 4000)) == list(range(1235, 4001))
    assert asyncio.run(read(4990, 5000)) == list(range(4991, 5001))


def test_what_is_kept_of_ended_jobs_is_bounded() -> None:
    broadcast = Broadcast()
    for number in range(500):
        broadcast.publish(job(job_id=f"job_{number}", state="completed"), [progress(1)])
    assert sum(broadcast.latest(f"job_{number}") is not None for number in range(500)) <= 64


def test_an_older_record_that_comes_late_takes_nothing_back() -> None:
    broadcast = Broadcast()
    broadcast.publish(job(state="completed", attempt=1, last_seq=9))
    broadcast.publish(job(state="training", attempt=1, last_seq=7, command_count=1, stop_requested_at=1.0))
    latest = broadcast.latest("job_1")
    assert latest is not None
    assert latest.state == "completed"
    broadcast.publish(job(state="queued", attempt=2, last_seq=10))
    broadcast.publish(job(state="initializing", attempt=2, last_seq=11))
    broadcast.publish(job(state="queued", attempt=2, last_seq=10))
    latest = broadcast.latest("job_1")
    assert latest is not None
    assert latest.state == "initializing"


def test_a_job_that_is_paused_and_resumed_is_shown_waiting_again() -> None:
    broadcast = Broadcast()
    for moment, state in enumerate(("queued", "paused", "queued")):
        # The clock may be set back meanwhile.
        broadcast.publish(job(state=state, last_seq=moment, updated_at=-float(moment)))
    broadcast.publish(job(state="paused", last_seq=1, updated_at=10.0))
    latest = broadcast.latest("job_1")
    assert latest is not None
    assert latest.state == "queued"
