"""Tokenizers that a helper process has loaded, for as long as their files are the same."""

from __future__ import annotations

import time
from functools import lru_cache
from pathlib import Path
from typing import Any

from merlina.data.fingerprint import stamp
from merlina.errors import ModelError
from merlina.training.models.model_files import split_gguf
from merlina.training.models.tokenizer_loading import load_tokenizer
from merlina.worker.helper.phases import PHASES

MAX_LOADING_SECONDS = 120.0
# What was loaded from the Hub is cached for this long.
_HUB_CACHE_SECONDS = 300.0
Version = tuple[object, ...]


def cached_tokenizer(name: str, token: str | None, trust_remote_code: bool = False) -> Any:
    """Return the tokenizer from the cache, or load it if its files have changed. Raises ModelError."""
    return _tokenizer(name, token, trust_remote_code, version_of(name))


@lru_cache(maxsize=4)
def _tokenizer(name: str, token: str | None, trust_remote_code: bool, _version: Version) -> Any:
    with PHASES.during(f"Loading the tokenizer of {name!r}", MAX_LOADING_SECONDS, ModelError):
        return load_tokenizer(name, token, trust_remote_code)


def version_of(model: str) -> Version:
    """Return a value that changes with the files of a local model, and with time for a model on the Hub."""
    name, gguf = split_gguf(model)
    folder = Path(name)
    if not folder.is_dir():
        return (int(time.monotonic() / _HUB_CACHE_SECONDS),)
    found = [folder / gguf] if gguf else sorted([*folder.glob("*"), *folder.glob("additional_chat_templates/*")])
    return tuple((str(path), *stamp(path).model_dump().values()) for path in found if path.is_file())
