"""Python's collector of reference cycles while rows are read, which make many objects and few cycles."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator

# Objects that are created and not yet freed before the collector examines them: more than two batches of rows have.
_OBJECTS = 200_000


@contextlib.contextmanager
def rare_collections() -> Iterator[None]:
    """Examine objects for cycles rarely.

    With the usual thresholds, a sixth of the processor time of encoding short rows is spent on examining rows that
    their counts of references free.
    """
    usual = gc.get_threshold()
    gc.set_threshold(_OBJECTS, *usual[1:])
    try:
        yield
    finally:
        gc.set_threshold(*usual)
