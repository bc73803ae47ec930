"""Answers that are sent line by line while they are made, and given up once their reader has gone."""

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

from merlina.api.disconnects import watched
from merlina.errors import MerlinaError
from merlina.schemas.chat import AnswerFails


class LinesResponse(StreamingResponse):
    """One JSON object a line. What comes before the first is raised, and so becomes an answer with its own status."""

    media_type = "application/x-ndjson"
    _stack: contextlib.AsyncExitStack

    @classmethod
    async def open(
        cls, request: Request, answer: Callable[[threading.Event], Generator[BaseModel, None, None]]
    ) -> LinesResponse:
        """`answer` is given the event that is set when the reader has gone; it is run in threads."""
        stack = contextlib.AsyncExitStack()
        closed = await stack.enter_async_context(watched(request))
        lines = answer(closed)
        try:
            first = await run_in_threadpool(next, lines)
        except BaseException:
            await stack.aclose()
            raise
        stack.push_async_callback(run_in_threadpool, lines.close)
        stack.callback(closed.set)
        # nginx would keep the lines until it has many of them.
        response = cls(_encoded(first, lines), headers={"X-Accel-Buffering": "no"})
        response._stack = stack
        return response

    async def __call__(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        async with self._stack:
            # Whether the reader has gone is watched already; nothing is left to be received here.
            with contextlib.suppress(OSError):
                await self.stream_response(send)


def _encoded(first: BaseModel, others: Generator[BaseModel, None, None]) -> Generator[bytes, None, None]:
    """What goes wrong on the way is the last line."""
    try:
        for line in chain([first], others):
            yield _line(line)
    except MerlinaError as error:
        yield _line(AnswerFails(type="error", error=error.message))


def _line(model: BaseModel) -> bytes:
    return model.model_dump_json().encode() + b"\n"
