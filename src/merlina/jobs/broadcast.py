"""Where news of jobs meets those who wait for it: the supervisor's thread publishes, WebSocket readers wait.

It keeps each job's latest record and newest events. A slow subscriber reads older ones from the run's event log, so
that no subscriber costs memory or slows another one.
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

_KEPT_EVENTS = 2048
_KEPT_ENDED_JOBS = 64


@dataclass
class _Channel:
    version: int = 0
    record: JobRecord | None = None
    recent: deque[Event] = field(default_factory=lambda: deque(maxlen=_KEPT_EVENTS))
    waiters: set[asyncio.Future[None]] = field(default_factory=set)


class Broadcast:
    """One channel for each job that someone publishes on or waits for."""

    def __init__(self) -> None:
        self._channels: dict[str, _Channel] = {}
        self._ended: deque[str] = deque()
        self._lock = threading.Lock()

    def publish(self, record: JobRecord, events: Sequence[Event] = ()) -> None:
        """Tells of a job's new record and of the events that made it. From any thread."""
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

    def forget(self, job_id: str) -> None:
        """Drops what is kept of a job that is gone; whoever waits is woken."""
        with self._lock:
            channel = self._channels.pop(job_id, None)
        _wake(channel.waiters if channel else ())

    def version(self, job_id: str) -> int:
        """A number that changes with each publication; read it before reading what was published."""
        with self._lock:
            channel = self._channels.get(job_id)
            return channel.version if channel else 0

    def latest(self, job_id: str) -> JobRecord | None:
        """The newest record published, if any was."""
        with self._lock:
            channel = self._channels.get(job_id)
            return channel.record if channel else None

    def recent(self, job_id: str, after: int) -> list[Event] | None:
        """Events numbered above `after`; None where some of them are older than what is kept."""
        with self._lock:
            channel = self._channels.get(job_id)
            if channel is None or not channel.recent or channel.recent[0].seq > after + 1:
                return None
            # From the newest on: those who keep up want the last few of many.
            newest_first = takewhile(lambda event: event.seq > after, reversed(channel.recent))
            return list(newest_first)[::-1]

    def _note_end(self, job_id: str) -> None:
        """Lets the channels of jobs go that ended long ago."""
        self._ended.append(job_id)
        if len(self._ended) > _KEPT_ENDED_JOBS:
            oldest = self._ended.popleft()
            channel = self._channels.get(oldest)
            if channel and channel.record and channel.record.is_ended and not channel.waiters:
                del self._channels[oldest]

    async def changed(self, job_id: str, version: int) -> None:
        """Returns once the version is another than the given one."""
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
    """How far a job has come, by numbers that only grow: two threads may publish in another order than they wrote."""
    return record.last_seq, record.operations


def _wake(waiters: Iterable[asyncio.Future[None]]) -> None:
    """Wakes all of a loop by one call, since each call into another thread's loop costs a system call."""
    by_loop: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = {}
    for waiter in waiters:
        by_loop.setdefault(waiter.get_loop(), []).append(waiter)
    for loop, group in by_loop.items():
        # A loop that is closed has no reader left to tell.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(_finish, group)


def _finish(waiters: list[asyncio.Future[None]]) -> None:
    for waiter in waiters:
        if not waiter.done():
            waiter.set_result(None)
