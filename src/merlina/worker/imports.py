"""Import of large modules. Garbage collection, which finds nothing there, would add a fifth to the seconds it takes."""

from __future__ import annotations

import gc
import importlib
from collections.abc import Iterable
from types import ModuleType


def import_without_gc(names: Iterable[str]) -> list[ModuleType]:
    """Import the modules without garbage collection, and exclude their objects from all later collections."""
    gc.disable()
    try:
        modules = [importlib.import_module(name) for name in names]
        gc.freeze()
    finally:
        gc.enable()
    return modules
