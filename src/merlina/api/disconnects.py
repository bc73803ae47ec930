"""Requests that may take long: they have threads of their own, so that quick ones always find one."""

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
SLOW_THREADS = 48


async def run_slow(limiter: CapacityLimiter, function: Callable[..., _T], *arguments: Any, **named: Any) -> _T:
    """The function's result. It goes on when the client has gone."""
    return await to_thread.run_sync(partial(function, *arguments, **named), limiter=limiter)


async def run_while_connected(
    request: Request, limiter: CapacityLimiter, function: Callable[..., _T], *arguments: Any, **named: Any
) -> _T:
    """The function's result. As `closed` it is given the event that is set once the client has gone."""
    async with watched(request) as closed:
        return await run_slow(limiter, function, *arguments, closed=closed, **named)


@contextlib.asynccontextmanager
async def watched(request: Request) -> AsyncIterator[threading.Event]:
    """An event that is set once the connection that a request came by is closed."""
    closed = threading.Event()
    watching = asyncio.create_task(_watch(request, closed))
    try:
        yield closed
    finally:
        watching.cancel()


async def _watch(request: Request, closed: threading.Event) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    closed.set()
