"""Limits on the size, nesting depth and number of values of request bodies. Uploads have a limit of their own."""

from __future__ import annotations

import json

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from merlina.schemas.parsing.json_text import has_more_values, nesting_depth

_MAX_BODY = 1024**2
_MAX_DEPTH = 64
_MAX_VALUES = 100_000


class BodyLimitMiddleware:
    """Responds with 413 to bodies over 1 MiB, and with 400 to JSON beyond the limits or with half a surrogate pair.

    JSON may be nested 64 levels deep and have 100,000 values.
    """

    def __init__(self, app: ASGIApp, streamed_path: str) -> None:
        self._app = app
        self._streamed_path = streamed_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD") or scope["path"] == self._streamed_path:
            await self._app(scope, receive, send)
            return
        body = await _read(receive, Headers(scope=scope))
        if body is None:
            detail = f"The body is larger than {_MAX_BODY // 1024**2} MiB; upload files to {self._streamed_path}"
            await JSONResponse({"detail": detail}, 413, headers={"Connection": "close"})(scope, receive, send)
        elif (problem := _problem(body)) is not None:
            await JSONResponse({"detail": problem}, 400)(scope, receive, send)
        else:
            await self._app(scope, _replay(body, receive), send)


async def _read(receive: Receive, headers: Headers) -> bytes | None:
    """Return the body, or None if it exceeds the limit."""
    stated = headers.get("content-length", "")
    if stated.isdigit() and int(stated) > _MAX_BODY:
        return None
    body = bytearray()
    while True:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > _MAX_BODY:
            return None
        if not message.get("more_body", False):
            return bytes(body)


def _problem(body: bytes) -> str | None:
    if nesting_depth(body, _MAX_DEPTH) > _MAX_DEPTH:
        return f"body: nested deeper than {_MAX_DEPTH} levels"
    if has_more_values(body, _MAX_VALUES):
        return f"body: more than {_MAX_VALUES:,} values"
    if b"\\u" in body and not _is_encodable(body):
        return "body: contains half of a surrogate pair, which is not a valid character"
    return None


def _is_encodable(body: bytes) -> bool:
    try:
        json.dumps(json.loads(body), ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    except ValueError:
        return True  # not JSON, which the route reports
    return True


def _replay(body: bytes, receive: Receive) -> Receive:
    first: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_again() -> Message:
        return first.pop() if first else await receive()

    return receive_again
