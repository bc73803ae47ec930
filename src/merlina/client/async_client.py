"""The asynchronous client: requests of the blocking client in threads, and its own streams and WebSocket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

import httpx
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from merlina.client.client import LOAD_SECONDS, Client
from merlina.client.connection import direct, unreachable, websocket_proxy
from merlina.client.live import CONNECTION_ERRORS, RECONNECT_SECONDS, address, check_end, parse_message, refusal
from merlina.client.responses import AnswerEvent, answer_event, error_of, sendable
from merlina.schemas.chat import AnswerRequest
from merlina.schemas.jobs import JobStatus
from merlina.schemas.messages import JobMessage

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


def _in_thread(
    method: Callable[Concatenate[Client, _Arguments], _Result],
) -> Callable[Concatenate[AsyncClient, _Arguments], Coroutine[Any, Any, _Result]]:
    """Return an asynchronous method that runs a method of `Client` in a thread."""

    async def awaited(self: AsyncClient, /, *args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        return await asyncio.to_thread(method, self.blocking, *args, **kwargs)

    awaited.__name__, awaited.__doc__ = method.__name__, method.__doc__
    return awaited


class AsyncClient:
    """Like `Client`, but methods are awaited; `answer` and `watch` are async iterators. `blocking` sends requests."""

    def __init__(
        self, url: str | None = None, api_key: str | None = None, *, timeout: float | None = 200.0, retries: int = 2
    ) -> None:
        self.blocking = Client(url, api_key, timeout=timeout, retries=retries)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _: TracebackType | None
    ) -> None:
        await self.close()

    close = _in_thread(Client.close)
    info = _in_thread(Client.info)
    health = _in_thread(Client.health)
    stats = _in_thread(Client.stats)
    system = _in_thread(Client.system)
    validate = _in_thread(Client.validate)
    train = _in_thread(Client.train)
    status = _in_thread(Client.status)
    jobs = _in_thread(Client.jobs)
    history = _in_thread(Client.history)
    metrics = _in_thread(Client.metrics)
    config = _in_thread(Client.config)
    logs = _in_thread(Client.logs)
    loading_code = _in_thread(Client.loading_code)
    timeline = _in_thread(Client.timeline)
    stop = _in_thread(Client.stop)
    pause = _in_thread(Client.pause)
    resume = _in_thread(Client.resume)
    retry = _in_thread(Client.retry)
    delete = _in_thread(Client.delete)
    clear = _in_thread(Client.clear)
    queue_status = _in_thread(Client.queue_status)
    queue_jobs = _in_thread(Client.queue_jobs)
    upload = _in_thread(Client.upload)
    uploads = _in_thread(Client.uploads)
    delete_upload = _in_thread(Client.delete_upload)
    preview = _in_thread(Client.preview)
    preview_formatted = _in_thread(Client.preview_formatted)
    columns = _in_thread(Client.columns)
    gpus = _in_thread(Client.gpus)
    gpu = _in_thread(Client.gpu)
    available_gpus = _in_thread(Client.available_gpus)
    recommended_gpu = _in_thread(Client.recommended_gpu)
    save_config = _in_thread(Client.save_config)
    saved_configs = _in_thread(Client.saved_configs)
    saved_config = _in_thread(Client.saved_config)
    delete_config = _in_thread(Client.delete_config)
    export_config = _in_thread(Client.export_config)
    import_config = _in_thread(Client.import_config)
    preload_model = _in_thread(Client.preload_model)
    cached_models = _in_thread(Client.cached_models)
    chat_state = _in_thread(Client.chat_state)
    load_chat_model = _in_thread(Client.load_chat_model)
    unload_chat_model = _in_thread(Client.unload_chat_model)
    compare = _in_thread(Client.compare)
    vote = _in_thread(Client.vote)
    comparisons = _in_thread(Client.comparisons)
    save_votes = _in_thread(Client.save_votes)

    async def answer(self, request: AnswerRequest) -> AsyncIterator[AnswerEvent]:
        """Yield the answer of one side as it is generated; closing the iterator cancels it.

        Raises ServerError if the answer fails.
        """
        blocking, body = self.blocking, sendable(request)
        mounts = direct(blocking.url)
        http = httpx.AsyncClient(base_url=blocking.url, headers=blocking.headers, timeout=LOAD_SECONDS, mounts=mounts)
        try:
            async with http, http.stream("POST", "/chat/answer", json=body) as response:
                if response.is_error:
                    await response.aread()
                    raise error_of(response)
                async for line in response.aiter_lines():
                    yield answer_event(line)
        except httpx.TransportError as error:
            raise unreachable(blocking.url, error) from error

    async def watch(self, job_id: str, after: int | None = None) -> AsyncIterator[JobMessage]:
        """Yield a job's messages up to its last one, reconnecting after lost connections and restarts of the server.

        Each `metrics` message comes once; the snapshot at the beginning of a connection may be repeated. `after`
        replays the events after that number. Raises ServerError if the server is unreachable for about a minute.
        """
        failures = 0
        while True:
            try:
                async for message in self._messages(job_id, after):
                    failures = 0
                    after = message.seq
                    yield message
                return
            except CONNECTION_ERRORS as error:
                if (refused := refusal(error)) is not None:
                    raise refused from error
                if failures == len(RECONNECT_SECONDS):
                    raise unreachable(self.blocking.url, error) from error
                await asyncio.sleep(RECONNECT_SECONDS[failures])
                failures += 1

    async def wait(self, job_id: str, on_message: Callable[[JobMessage], object] | None = None) -> JobStatus:
        """Return the job's status once it has ended. `on_message` is called with each message until then."""
        async for message in self.watch(job_id):
            if on_message is not None:
                on_message(message)
        return await self.status(job_id)

    async def _messages(self, job_id: str, after: int | None) -> AsyncIterator[JobMessage]:
        """Yield one connection's messages up to the last one. Raises ConnectionClosed if the connection is lost."""
        headers = self.blocking.headers
        url, proxy = address(self.blocking.url, job_id, after), websocket_proxy(self.blocking.url)
        async with connect(url, additional_headers=headers, max_size=None, proxy=proxy) as websocket:
            while True:
                try:
                    yield parse_message(await websocket.recv())
                except ConnectionClosed as closed:
                    check_end(closed, job_id)
                    return
