"""The forms of a base model's name: a `.gguf` file or another one, and its path on this machine."""

from __future__ import annotations

import os
from pathlib import Path


def is_gguf(base_model: str) -> bool:
    """Return whether the name is that of a `.gguf` file."""
    return base_model.lower().endswith(".gguf")


def local_path(base_model: str) -> Path:
    """Return `base_model` as a path, for os.path only, which accepts any text except one with a null character."""
    return Path(base_model if "\0" in base_model else os.path.expanduser(base_model))
