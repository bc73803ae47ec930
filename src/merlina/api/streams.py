"""Responses that are streamed piece by piece and cancelled when the client disconnects."""

from __future__ import annotations

import contextlib
import threading
from abc import abstractmethod
from collections.abc import Callable, Generator
from itertools import chain
from typing import Self

from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from merlina.api.error_responses import completion_error
from merlina.api.long_requests import disconnect_event
from merlina.errors import MerlinaError
from merlina.schemas.chat import AnswerFails


class ModelsResponse(StreamingResponse):
    """A response of a series of models. An error before the first model becomes an ordinary error response."""

    _stack: contextlib.AsyncExitStack

    @classmethod
    async def open(
        cls, request: Request, generate: Callable[[threading.Event], Generator[BaseModel, None, None]]
    ) -> Self:
        """Start a response. `generate` runs in threads; its event is set when the client disconnects."""
        stack = contextlib.AsyncExitStack()
        closed = await stack.enter_async_context(disconnect_event(request))
        models = generate(closed)
        try:
            first = await run_in_threadpool(next, models)
        except BaseException:
            await stack.aclose()
            raise
        stack.push_async_callback(run_in_threadpool, models.close)
        stack.callback(closed.set)
        # Without this header, nginx buffers the response.
        response = cls(cls._encoded(first, models), headers={"X-Accel-Buffering": "no"})
        response._stack = stack
        return response

    async def __call__(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        async with self._stack:
            # `disconnect_event` receives the disconnect; there is nothing to receive here.
            with contextlib.suppress(OSError):
                await self.stream_response(send)

    @classmethod
    def _encoded(cls, first: BaseModel, others: Generator[BaseModel, None, None]) -> Generator[bytes, None, None]:
        """Encode the models. An error becomes the last one."""
        try:
            for model in chain([first], others):
                yield cls._encode(model)
        except MerlinaError as error:
            yield cls._encode(cls._failure(error))
        else:
            yield cls._end

    _end = b""

    @staticmethod
    @abstractmethod
    def _encode(model: BaseModel) -> bytes:
        """Return a model as it is sent."""

    @staticmethod
    @abstractmethod
    def _failure(error: MerlinaError) -> BaseModel:
        """Return the last model of a response that failed."""


class LinesResponse(ModelsResponse):
    """One JSON object per line."""

    media_type = "application/x-ndjson"

    @staticmethod
    def _encode(model: BaseModel) -> bytes:
        return model.model_dump_json().encode() + b"\n"

    @staticmethod
    def _failure(error: MerlinaError) -> BaseModel:
        return AnswerFails(type="error", error=error.message)


class EventsResponse(ModelsResponse):
    """Server-sent events with a JSON object each, ended by `[DONE]`, as clients of OpenAI's API expect them."""

    media_type = "text/event-stream"
    _end = b"data: [DONE]\n\n"

    @staticmethod
    def _encode(model: BaseModel) -> bytes:
        return b"data: " + model.model_dump_json().encode() + b"\n\n"

    @staticmethod
    def _failure(error: MerlinaError) -> BaseModel:
        return completion_error(error)
