"""Merlina: fine-tune language models on preference pairs, on your own machine."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from merlina.client import AsyncClient, Client
    from merlina.schemas.datasets.config import DatasetConfig
    from merlina.schemas.training.config import TrainingConfig

    __version__: str

__all__ = ["AsyncClient", "Client", "DatasetConfig", "TrainingConfig", "__version__"]

_HOMES = {
    "AsyncClient": "merlina.client",
    "Client": "merlina.client",
    "DatasetConfig": "merlina.schemas.datasets.config",
    "TrainingConfig": "merlina.schemas.training.config",
}


def __getattr__(name: str) -> Any:
    """Import public names on first access: a worker does not need the clients."""
    if name == "__version__":
        from merlina.version import current

        return current().number
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
