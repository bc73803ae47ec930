"""A cache of pure functions' results, so that what many subscribers need from one event is computed once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

_Result = TypeVar("_Result")
_MAX_RESULTS = 512


class ResultCache:
    """Caches up to 512 results by the identity of the function and its arguments; it is emptied when full."""

    def __init__(self) -> None:
        self._results: dict[tuple[int, ...], tuple[tuple[Any, ...], Any]] = {}

    def get(self, function: Callable[..., _Result], *arguments: Any) -> _Result:
        """Return `function(*arguments)`. To be called from one thread only."""
        key = (id(function), *map(id, arguments))
        cached = self._results.get(key)
        if cached is None:
            if len(self._results) >= _MAX_RESULTS:
                self._results.clear()
            # The arguments are kept as well: while they exist, no other object can have their ids.
            cached = self._results[key] = ((function, *arguments), function(*arguments))
        result: _Result = cached[1]
        return result
