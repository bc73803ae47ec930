"""A cache for the most polled responses, which is valid until the next write to the database."""

from __future__ import annotations

from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

_MAX_ENTRIES = 256


class ResponseCacheMiddleware:
    """Caches responses to `GET /jobs` and `GET /status/{job_id}`, which depend on the database alone.

    `revision` returns a number that changes with each write to the database. It is read before a response is computed,
    and the response is reused only while the number is the same: no client receives an outdated state.
    """

    def __init__(self, app: ASGIApp, revision: Callable[[], int]) -> None:
        self._app = app
        self._revision = revision
        self._entries: dict[str, list[Message]] = {}
        self._revision_of_entries = -1

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not _is_polled(scope):
            await self._app(scope, receive, send)
            return
        revision = self._revision()
        if revision != self._revision_of_entries:
            self._revision_of_entries = revision
            self._entries = {}
        entries = self._entries
        if (messages := entries.get(scope["path"])) is None:
            messages = await self._respond(scope, receive, send)
            if messages[0]["status"] == 200 and len(entries) < _MAX_ENTRIES:
                entries[scope["path"]] = messages
            return
        for message in messages:
            # A copy, because outer middleware adds headers to the message it receives.
            await send(dict(message))

    async def _respond(self, scope: Scope, receive: Receive, send: Send) -> list[Message]:
        messages: list[Message] = []

        async def record(message: Message) -> None:
            messages.append(dict(message))
            await send(message)

        await self._app(scope, receive, record)
        return messages


def _is_polled(scope: Scope) -> bool:
    if scope["type"] != "http" or scope["method"] != "GET" or scope["query_string"]:
        return False
    path: str = scope["path"]
    return path == "/jobs" or path.startswith("/status/")
