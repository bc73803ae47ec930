"""Distribution of job records and events: the writers of jobs publish, WebSocket connections subscribe.

The broadcast keeps each job's latest record and newest events. A slow subscriber reads older events from the run's
log, so that no subscriber costs memory or delays another one.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import takewhile

from merlina.schemas.events import Event
from merlina.storage.jobs import JobRecord

_MAX_EVENTS = 2048
_MAX_ENDED_JOBS = 64


@dataclass
class _Channel:
    version: int = 0
    record: JobRecord | None = None
    recent: deque[Event] = field(default_factory=lambda: deque(maxlen=_MAX_EVENTS))
    waiters: set[asyncio.Future[None]] = field(default_factory=set)


class Broadcast:
    """One channel for each job that has publications or subscribers. Methods may be called from any thread."""

    def __init__(self) -> None:
        self._channels: dict[str, _Channel] = {}
        self._ended: deque[str] = deque()
        self._lock = threading.Lock()

    def publish(self, record: JobRecord, events: Sequence[Event] = ()) -> None:
        """Publish a job's new record and the events that led to it, and wake the job's subscribers."""
        with self._lock:
            channel = self._channels.setdefault(record.job_id, _Channel())
            channel.version += 1
            if channel.record is None or _moment(record) >= _moment(channel.record):
                channel.record = record
            channel.recent.extend(events)
            waiters, channel.waiters = channel.waiters, set()
            if record.is_ended:
                self._note_end(record.job_id)
        _wake(waiters)

    def discard_channel(self, job_id: str) -> None:
        """Discard the channel of a deleted job, and wake its subscribers."""
        with self._lock:
            channel = self._channels.pop(job_id, None)
        _wake(channel.waiters if channel else ())

    def version(self, job_id: str) -> int:
        """Return a number that changes with each publication; read it before reading what was published."""
        with self._lock:
            channel = self._channels.get(job_id)
            return channel.version if channel else 0

    def latest(self, job_id: str) -> JobRecord | None:
        """Return the newest published record, if there is one."""
        with self._lock:
            channel = self._channels.get(job_id)
            return channel.record if channel else None

    def recent(self, job_id: str, after: int) -> list[Event] | None:
        """Return the events numbered above `after`; None if some of them are no longer in memory."""
        with self._lock:
            channel = self._channels.get(job_id)
            if channel is None or not channel.recent or channel.recent[0].seq > after + 1:
                return None
            # Newest first, because most subscribers need only the last few.
            newest_first = takewhile(lambda event: event.seq > after, reversed(channel.recent))
            return list(newest_first)[::-1]

    def _note_end(self, job_id: str) -> None:
        """Discard the channels of jobs that ended long ago."""
        self._ended.append(job_id)
        if len(self._ended) > _MAX_ENDED_JOBS:
            oldest = self._ended.popleft()
            channel = self._channels.get(oldest)
            if channel and channel.record and channel.record.is_ended and not channel.waiters:
                del self._channels[oldest]

    async def changed(self, job_id: str, version: int) -> None:
        """Wait until the job's version differs from `version`."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        with self._lock:
            channel = self._channels.setdefault(job_id, _Channel())
            if channel.version != version:
                return
            channel.waiters.add(waiter)
        try:
            await waiter
        finally:
            with self._lock:
                channel.waiters.discard(waiter)


def _moment(record: JobRecord) -> tuple[int, int]:
    """Return numbers that only grow: two threads may publish in a different order than they wrote."""
    return record.last_seq, record.command_count


def _wake(waiters: Iterable[asyncio.Future[None]]) -> None:
    """Wake all waiters of an event loop by one call, because each call from another thread costs a system call."""
    by_loop: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = {}
    for waiter in waiters:
        by_loop.setdefault(waiter.get_loop(), []).append(waiter)
    for loop, group in by_loop.items():
        # A closed loop has no subscribers.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(_finish, group)


def _finish(waiters: list[asyncio.Future[None]]) -> None:
    for waiter in waiters:
        if not waiter.done():
            waiter.set_result(None)
