"""How large and how deep a request's body may be. Uploads are streamed and have their own limit."""

from __future__ import annotations

import json

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from merlina.schemas.parsing.json_text import has_more_values, nesting_depth

_LARGEST_BODY = 1024**2
_DEEPEST = 64
_MOST_VALUES = 100_000


class BodyLimitMiddleware:
    """Answers 413 for a body over 1 MiB, 400 for JSON that is nested deeper than 64, holds more than 100,000 values or
    can't be sent back as UTF-8."""

    def __init__(self, app: ASGIApp, streamed_path: str) -> None:
        self._app = app
        self._streamed_path = streamed_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD") or scope["path"] == self._streamed_path:
            await self._app(scope, receive, send)
            return
        body = await _read(receive, Headers(scope=scope))
        if body is None:
            detail = f"The body is larger than {_LARGEST_BODY // 1024**2} MiB; files go to {self._streamed_path}"
            await JSONResponse({"detail": detail}, 413, headers={"Connection": "close"})(scope, receive, send)
        elif (problem := _problem(body)) is not None:
            await JSONResponse({"detail": problem}, 400)(scope, receive, send)
        else:
            await self._app(scope, _replay(body, receive), send)


async def _read(receive: Receive, headers: Headers) -> bytes | None:
    """The whole body; None where it is over the limit."""
    stated = headers.get("content-length", "")
    if stated.isdigit() and int(stated) > _LARGEST_BODY:
        return None
    body = bytearray()
    while True:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > _LARGEST_BODY:
            return None
        if not message.get("more_body", False):
            return bytes(body)


def _problem(body: bytes) -> str | None:
    if nesting_depth(body, _DEEPEST) > _DEEPEST:
        return f"body: nested deeper than {_DEEPEST} levels"
    if has_more_values(body, _MOST_VALUES):
        return f"body: more than {_MOST_VALUES:,} values"
    if b"\\u" in body and not _is_encodable(body):
        return "body: a text in it has half of a surrogate pair, which is no character"
    return None


def _is_encodable(body: bytes) -> bool:
    try:
        json.dumps(json.loads(body), ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    except ValueError:
        return True  # no JSON: whoever reads it will say so
    return True


def _replay(body: bytes, receive: Receive) -> Receive:
    first: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return first.pop() if first else await receive()

    return replayed
