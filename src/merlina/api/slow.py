"""Requests that may take long: they have threads of their own, so that quick ones always find one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from anyio import CapacityLimiter, to_thread
from starlette.requests import Request

from merlina.api.streams import watched

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
