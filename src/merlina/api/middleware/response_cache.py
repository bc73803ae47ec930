"""What is polled most, answered again without asking the database, for as long as nothing was written to it."""

from __future__ import annotations

from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

_KEPT_ANSWERS = 256


class ResponseCacheMiddleware:
    """Keeps the answers to `GET /jobs` and `GET /status/{job_id}`, which depend on the database alone.

    `revision` gives a number that changes with each write to the database. An answer is given again only while that
    number is the one from before it was first worked out, so that no client ever sees less than what was answered.
    """

    def __init__(self, app: ASGIApp, revision: Callable[[], int]) -> None:
        self._app = app
        self._revision = revision
        self._kept: dict[str, list[Message]] = {}
        self._kept_at = -1

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not _is_polled(scope):
            await self._app(scope, receive, send)
            return
        revision = self._revision()
        if revision != self._kept_at:
            self._kept_at = revision
            self._kept = {}
        kept = self._kept
        if (messages := kept.get(scope["path"])) is None:
            messages = await self._answer(scope, receive, send)
            if messages[0]["status"] == 200 and len(kept) < _KEPT_ANSWERS:
                kept[scope["path"]] = messages
            return
        for message in messages:
            # A copy, since what stands around this one adds headers to the message it is handed.
            await send(dict(message))

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> list[Message]:
        messages: list[Message] = []

        async def note(message: Message) -> None:
            messages.append(dict(message))
            await send(message)

        await self._app(scope, receive, note)
        return messages


def _is_polled(scope: Scope) -> bool:
    if scope["type"] != "http" or scope["method"] != "GET" or scope["query_string"]:
        return False
    path: str = scope["path"]
    return path == "/jobs" or path.startswith("/status/")
