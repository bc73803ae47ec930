"""A subscriber's position in one run's events, which come from the broadcast or, if it is behind, from the log."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

from merlina.jobs.broadcast import Broadcast
from merlina.run_folder.event_log import in_order, read_events
from merlina.schemas.events import Event

# The most that a blocked subscriber keeps in memory, however far it is behind.
_BATCH_EVENTS = 256
_BATCH_BYTES = 64 * 1024


class EventCursor:
    """Reads events in order; `seq` is the number of the last event returned."""

    def __init__(self, broadcast: Broadcast, job_id: str, events_file: Path, seq: int) -> None:
        self.seq = seq
        self._broadcast = broadcast
        self._job_id = job_id
        self._events_file = events_file
        self._offset = 0

    async def until(self, last: int) -> AsyncIterator[list[Event]]:
        """Yield the events after `seq` up to number `last`, in batches, oldest first."""
        while self.seq < last:
            recent = self._broadcast.recent(self._job_id, self.seq)
            # For a moment the database may be ahead of the broadcast; the event log is ahead of both.
            found = recent if recent else await asyncio.to_thread(self._from_log)
            batch = [event for event in found[:_BATCH_EVENTS] if event.seq <= last]
            if not batch:
                return
            self.seq = batch[-1].seq
            yield batch

    def _from_log(self) -> list[Event]:
        while True:
            found, offset = read_events(self._events_file, self._offset, _BATCH_BYTES)
            fresh = in_order(found, self.seq)
            if fresh or not found:
                return fresh
            self._offset = offset
