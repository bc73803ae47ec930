"""What many readers of one job would each work out again from the same event, worked out once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

_Result = TypeVar("_Result")
_KEPT = 512


class Shared:
    """Remembers the results of pure functions by the very objects they were given; only of the newest few calls."""

    def __init__(self) -> None:
        self._kept: dict[tuple[int, ...], tuple[tuple[Any, ...], Any]] = {}

    def work(self, function: Callable[..., _Result], *arguments: Any) -> _Result:
        """What the function makes of these arguments. From one thread only."""
        key = (id(function), *map(id, arguments))
        kept = self._kept.get(key)
        if kept is None:
            if len(self._kept) >= _KEPT:
                self._kept.clear()
            # The arguments are kept too: as long as they are there, no other object has their ids.
            kept = self._kept[key] = ((function, *arguments), function(*arguments))
        result: _Result = kept[1]
        return result
