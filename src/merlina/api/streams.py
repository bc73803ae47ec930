"""Responses that are streamed line by line and cancelled when the client disconnects."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Generator
from itertools import chain

from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from merlina.api.long_requests import disconnect_event
from merlina.errors import MerlinaError
from merlina.schemas.chat import AnswerFails


class LinesResponse(StreamingResponse):
    """A response of one JSON object per line. An error before the first line becomes an ordinary error response."""

    media_type = "application/x-ndjson"
    _stack: contextlib.AsyncExitStack

    @classmethod
    async def open(
        cls, request: Request, generate: Callable[[threading.Event], Generator[BaseModel, None, None]]
    ) -> LinesResponse:
        """Start a response. `generate` runs in threads; its event is set when the client disconnects."""
        stack = contextlib.AsyncExitStack()
        closed = await stack.enter_async_context(disconnect_event(request))
        lines = generate(closed)
        try:
            first = await run_in_threadpool(next, lines)
        except BaseException:
            await stack.aclose()
            raise
        stack.push_async_callback(run_in_threadpool, lines.close)
        stack.callback(closed.set)
        # Without this header, nginx buffers the lines.
        response = cls(_encoded(first, lines), headers={"X-Accel-Buffering": "no"})
        response._stack = stack
        return response

    async def __call__(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        async with self._stack:
            # `disconnect_event` receives the disconnect; there is nothing to receive here.
            with contextlib.suppress(OSError):
                await self.stream_response(send)


def _encoded(first: BaseModel, others: Generator[BaseModel, None, None]) -> Generator[bytes, None, None]:
    """Encode the lines. An error becomes the last line."""
    try:
        for line in chain([first], others):
            yield _line(line)
    except MerlinaError as error:
        yield _line(AnswerFails(type="error", error=error.message))


def _line(model: BaseModel) -> bytes:
    return model.model_dump_json().encode() + b"\n"
