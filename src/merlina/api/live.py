"""Jobs over the WebSocket (API document, "WebSocket API"): a snapshot, then every event in order, then the end.

Each reader keeps only its place in the run's events. A slow one falls behind alone: it takes the metrics it missed from
the run's log, and of the status updates only the newest. What readers get alike is folded and encoded once for all.
"""

from __future__ import annotations

import asyncio
import json
import re
import time

from starlette.websockets import WebSocket, WebSocketDisconnect

from merlina.api.messages import HEARTBEAT, Message, last_message, lasting_message, refusal, request, status_update
from merlina.api.services import Services
from merlina.jobs.cursor import EventCursor
from merlina.jobs.fold import fold
from merlina.jobs.requests import Requested, requested
from merlina.schemas.events import Event
from merlina.storage import jobs
from merlina.storage.jobs import JobRecord

_NORMAL_END = 1000
_INVALID_REQUEST = 4400
_UNKNOWN_JOB = 4404
_EVENT_NUMBER = re.compile(r"[0-9]{1,18}")
_LONGEST_SHOWN = 60
_NOT_FOUND = "Job not found"
_STATUS_SECONDS = 0.1


async def serve_reader(websocket: WebSocket, services: Services, job_id: str, after: str | None) -> None:
    """Serve one connection from its acceptance to its close; a wrong `after` is answered by an `error` message."""
    await websocket.accept()
    services.websockets += 1
    reader = _Reader(websocket, services, job_id)
    sending = asyncio.create_task(reader.send_all(after))
    answering = asyncio.create_task(reader.answer_heartbeats())
    try:
        await asyncio.wait((sending, answering), return_when=asyncio.FIRST_COMPLETED)
        if sending.done():
            await websocket.close(sending.result())
    except (WebSocketDisconnect, RuntimeError):
        pass  # the reader went away in the middle of a message
    finally:
        services.websockets -= 1
        sending.cancel()
        answering.cancel()
        await asyncio.gather(sending, answering, return_exceptions=True)


class _Reader:
    def __init__(self, websocket: WebSocket, services: Services, job_id: str) -> None:
        self._websocket = websocket
        self._services = services
        self._job_id = job_id
        self._sends = asyncio.Lock()
        self._greeted = asyncio.Event()
        self._next_status_at = 0.0
        self._status_seq = 0
        self._requested: Requested | None = None

    async def answer_heartbeats(self) -> None:
        """Answer each message of the client, but none before the snapshot."""
        while (await self._websocket.receive())["type"] != "websocket.disconnect":
            await self._greeted.wait()
            await self._send(HEARTBEAT)

    async def send_all(self, after: str | None) -> int:
        """Sends until the job's last message; returns the code to close with."""
        if after is not None and not _EVENT_NUMBER.fullmatch(after):
            shown = repr(after if len(after) <= _LONGEST_SHOWN else f"{after[:_LONGEST_SHOWN]}…")
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
        self._greeted.set()
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
        await self._send(last_message(shown))
        return _NORMAL_END

    async def _catch_up(self, cursor: EventCursor, record: JobRecord) -> None:
        """Sends metrics and log lines up to the snapshot, which stands for all else that happened."""
        async for batch in cursor.until(record.last_seq):
            for event in batch:
                if (text := _lasting_text(record, event)) is not None:
                    await self._send_text(text)

    async def _send_news(self, cursor: EventCursor, shown: JobRecord, latest: JobRecord) -> None:
        shared = self._services.shared
        async for batch in cursor.until(latest.last_seq):
            for event in batch:
                before, shown = shown.state, shared.work(fold, shown, event)
                if shown.state != before and not shown.is_ended:
                    await self._send_status(shown, event.seq)
                if (text := shared.work(_lasting_text, shown, event)) is not None:
                    await self._send_text(text)
        if latest.is_ended:
            return
        if latest.last_seq > self._status_seq:
            await self._send_status(latest, latest.last_seq)
        elif requested(latest) != self._requested:
            self._requested = requested(latest)
            await self._send(request(latest))

    async def _send_status(self, record: JobRecord, seq: int) -> None:
        await asyncio.sleep(max(0.0, self._next_status_at - time.monotonic()))
        self._next_status_at = time.monotonic() + _STATUS_SECONDS
        self._status_seq = seq
        self._requested = requested(record)
        await self._send_text(self._services.shared.work(_status_text, record, seq))

    async def _refuse(self, problem: str, code: int) -> int:
        await self._send(refusal(self._job_id, time.time(), problem))
        self._greeted.set()
        return code

    async def _send(self, message: Message) -> None:
        await self._send_text(_encode(message))

    async def _send_text(self, text: str) -> None:
        async with self._sends:
            await self._websocket.send_text(text)

    def _load(self) -> JobRecord | None:
        with self._services.database.read() as connection:
            record = jobs.get(connection, self._job_id)
        return None if record is None or record.deleting else record


def _status_text(record: JobRecord, seq: int) -> str:
    return _encode(status_update(record, seq, record.updated_at))


def _lasting_text(record: JobRecord, event: Event) -> str | None:
    message = lasting_message(record.job_id, event)
    return None if message is None else _encode(message)


def _encode(message: Message) -> str:
    return json.dumps(message, separators=(",", ":"), ensure_ascii=False)
