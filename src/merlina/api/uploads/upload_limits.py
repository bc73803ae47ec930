"""Limit how many uploads are received and parsed at the same time; the others wait."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from anyio import CapacityLimiter, Semaphore

from merlina.errors import BusyError

_MAX_RECEIVING = 16
_MAX_PARSING = 2
_MAX_WAITING = 256


@dataclass
class UploadLimits:
    """The limits of one server. Uploads have `threads` of their own, so that other requests always find a free one."""

    threads: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(4))
    parsing: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(_MAX_PARSING))
    _receiving: Semaphore = field(default_factory=lambda: Semaphore(_MAX_RECEIVING))
    _waiting: int = 0

    @contextlib.asynccontextmanager
    async def receiving(self) -> AsyncIterator[None]:
        """Wait until this upload may be received. The body of a waiting upload is not read, so it takes no memory.

        Raises BusyError if too many uploads already wait.
        """
        if self._waiting >= _MAX_WAITING:
            raise BusyError(f"{_MAX_WAITING} uploads are already waiting; try again later")
        self._waiting += 1
        try:
            await self._receiving.acquire()
        finally:
            self._waiting -= 1
        try:
            yield
        finally:
            self._receiving.release()
