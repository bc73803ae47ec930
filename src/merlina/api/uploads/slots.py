"""How much work uploads may be at the same time: few are received and fewer are parsed, the others wait their turn."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from anyio import CapacityLimiter, Semaphore

from merlina.errors import BusyError

_RECEIVED_AT_ONCE = 16
_PARSED_AT_ONCE = 2
_MOST_WAITING = 256


@dataclass
class UploadSlots:
    """One server's. `threads` write to the disk and parse, so that uploads take no thread from other requests."""

    threads: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(4))
    parsing: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(_PARSED_AT_ONCE))
    _receiving: Semaphore = field(default_factory=lambda: Semaphore(_RECEIVED_AT_ONCE))
    _waiting: int = 0

    @contextlib.asynccontextmanager
    async def receiving(self) -> AsyncIterator[None]:
        """A place among those that are received. Who waits for one is not read from, so its body takes no memory.

        Raises BusyError where very many wait already.
        """
        if self._waiting >= _MOST_WAITING:
            raise BusyError(f"{_MOST_WAITING} uploads wait already; try again in a while")
        self._waiting += 1
        try:
            await self._receiving.acquire()
        finally:
            self._waiting -= 1
        try:
            yield
        finally:
            self._receiving.release()
