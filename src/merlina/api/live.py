"""WebSocket connections (docs/api.md, "WebSocket"): a snapshot of the job, its events in order, the last message.

A connection keeps only its position in the run's events. A slow one does not delay the others: it reads the metrics it
missed from the event log, and receives only the newest status update. Messages that several connections receive are
built and encoded once.
"""

from __future__ import annotations

import asyncio
import re
import time

from starlette.websockets import WebSocket, WebSocketDisconnect

from merlina.api.messages import HEARTBEAT, event_message, last_message, refusal, request_message, status_update
from merlina.api.services import Services
from merlina.jobs.cursor import EventCursor
from merlina.jobs.fold import fold
from merlina.jobs.requests import PendingRequests, pending_requests
from merlina.schemas.events import Event
from merlina.schemas.messages import encode
from merlina.storage import jobs
from merlina.storage.jobs import JobRecord

_NORMAL_END = 1000
_INVALID_REQUEST = 4400
_UNKNOWN_JOB = 4404
_EVENT_NUMBER = re.compile(r"[0-9]{1,18}")
_MAX_SHOWN = 60
_NOT_FOUND = "Job not found"
_STATUS_SECONDS = 0.1


async def serve_connection(websocket: WebSocket, services: Services, job_id: str, after: str | None) -> None:
    """Serve one connection until it closes. An invalid `after` results in an `error` message."""
    await websocket.accept()
    services.websockets += 1
    connection = _Connection(websocket, services, job_id)
    sending = asyncio.create_task(connection.send_all(after))
    responding = asyncio.create_task(connection.respond_to_client())
    try:
        await asyncio.wait((sending, responding), return_when=asyncio.FIRST_COMPLETED)
        if sending.done():
            await websocket.close(sending.result())
    except (WebSocketDisconnect, RuntimeError):
        pass  # the client disconnected in the middle of a message
    finally:
        services.websockets -= 1
        sending.cancel()
        responding.cancel()
        await asyncio.gather(sending, responding, return_exceptions=True)


class _Connection:
    def __init__(self, websocket: WebSocket, services: Services, job_id: str) -> None:
        self._websocket = websocket
        self._services = services
        self._job_id = job_id
        self._sends = asyncio.Lock()
        self._snapshot_sent = asyncio.Event()
        self._next_status_at = 0.0
        self._status_seq = 0
        self._pending_requests: PendingRequests | None = None

    async def respond_to_client(self) -> None:
        """Send a heartbeat for each message of the client, but none before the snapshot."""
        while (await self._websocket.receive())["type"] != "websocket.disconnect":
            await self._snapshot_sent.wait()
            await self._send_text(encode(HEARTBEAT))

    async def send_all(self, after: str | None) -> int:
        """Send all messages up to the job's last one and return the code to close with."""
        if after is not None and not _EVENT_NUMBER.fullmatch(after):
            shown = repr(after if len(after) <= _MAX_SHOWN else f"{after[:_MAX_SHOWN]}…")
            problem = f"after: must be the number of an event, 0 or more in at most 18 digits, not {shown}"
            return await self._refuse(problem, _INVALID_REQUEST)
        return await self._send_events(None if after is None else int(after))

    async def _send_events(self, after: int | None) -> int:
        broadcast = self._services.broadcast
        version = broadcast.version(self._job_id)
        shown = await asyncio.to_thread(self._load)
        if shown is None:
            return await self._refuse(_NOT_FOUND, _UNKNOWN_JOB)
        seq = shown.last_seq if after is None else min(after, shown.last_seq)
        cursor = EventCursor(broadcast, self._job_id, self._services.commands.folder(self._job_id).events_file, seq)
        # The last message of an ended job carries the last number.
        await self._send_status(shown, max(0, min(seq, shown.last_seq - 1)) if shown.is_ended else seq)
        self._snapshot_sent.set()
        self._status_seq = shown.last_seq
        await self._catch_up(cursor, shown)
        while not shown.is_ended:
            await broadcast.changed(self._job_id, version)
            version = broadcast.version(self._job_id)
            latest = broadcast.latest(self._job_id) or await asyncio.to_thread(self._load)
            if latest is None:
                return await self._refuse(_NOT_FOUND, _UNKNOWN_JOB)
            await self._send_news(cursor, shown, latest)
            shown = latest
        await self._send_text(encode(last_message(shown)))
        return _NORMAL_END

    async def _catch_up(self, cursor: EventCursor, record: JobRecord) -> None:
        """Send metrics and log lines up to the snapshot, which represents all other events."""
        async for batch in cursor.until(record.last_seq):
            for event in batch:
                if (text := _event_text(record.job_id, event)) is not None:
                    await self._send_text(text)

    async def _send_news(self, cursor: EventCursor, shown: JobRecord, latest: JobRecord) -> None:
        results = self._services.event_results
        async for batch in cursor.until(latest.last_seq):
            for event in batch:
                before, shown = shown.state, results.get(fold, shown, event)
                if shown.state != before and not shown.is_ended:
                    await self._send_status(shown, event.seq)
                if (text := results.get(_event_text, shown.job_id, event)) is not None:
                    await self._send_text(text)
        if latest.is_ended:
            return
        if latest.last_seq > self._status_seq:
            await self._send_status(latest, latest.last_seq)
        elif pending_requests(latest) != self._pending_requests:
            self._pending_requests = pending_requests(latest)
            await self._send_text(encode(request_message(latest)))

    async def _send_status(self, record: JobRecord, seq: int) -> None:
        await asyncio.sleep(max(0.0, self._next_status_at - time.monotonic()))
        self._next_status_at = time.monotonic() + _STATUS_SECONDS
        self._status_seq = seq
        self._pending_requests = pending_requests(record)
        await self._send_text(self._services.event_results.get(_status_text, record, seq))

    async def _refuse(self, problem: str, code: int) -> int:
        await self._send_text(encode(refusal(self._job_id, time.time(), problem)))
        self._snapshot_sent.set()
        return code

    async def _send_text(self, text: str) -> None:
        async with self._sends:
            await self._websocket.send_text(text)

    def _load(self) -> JobRecord | None:
        with self._services.database.read() as connection:
            record = jobs.get(connection, self._job_id)
        return None if record is None or record.deleting else record


def _status_text(record: JobRecord, seq: int) -> str:
    return encode(status_update(record, seq, record.updated_at))


def _event_text(job_id: str, event: Event) -> str | None:
    message = event_message(job_id, event)
    return None if message is None else encode(message)
