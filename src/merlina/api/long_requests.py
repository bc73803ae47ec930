"""Long requests: they run in threads of their own, so that short requests always find a free thread."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any, TypeVar

from anyio import CapacityLimiter, to_thread
from starlette.requests import Request

_T = TypeVar("_T")
LONG_REQUEST_THREADS = 48


async def run_in_thread(limiter: CapacityLimiter, function: Callable[..., _T], *arguments: Any, **named: Any) -> _T:
    """Return the function's result. The function continues if the client disconnects."""
    return await to_thread.run_sync(partial(function, *arguments, **named), limiter=limiter)


async def run_while_connected(
    request: Request, limiter: CapacityLimiter, function: Callable[..., _T], *arguments: Any, **named: Any
) -> _T:
    """Return the function's result. It receives as `closed` an event that is set once the client has disconnected."""
    async with disconnect_event(request) as closed:
        return await run_in_thread(limiter, function, *arguments, closed=closed, **named)


@contextlib.asynccontextmanager
async def disconnect_event(request: Request) -> AsyncIterator[threading.Event]:
    """Yield an event that is set once the request's connection is closed."""
    closed = threading.Event()
    watcher = asyncio.create_task(_watch(request, closed))
    try:
        yield closed
    finally:
        watcher.cancel()


async def _watch(request: Request, closed: threading.Event) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    closed.set()
