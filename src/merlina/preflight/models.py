"""Is the base model there, and may we read it? Only its config is looked at, never its weights."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from merlina.preflight.findings import Finding
from merlina.preflight.hub import check_repo

_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?")
_WEIGHTS = ("*.safetensors", "*.bin", "*.gguf")


def check_model(base_model: str, token: str | None) -> Finding:
    """A local folder, a `.gguf` file or a Hub id."""
    path = local_path(base_model)
    if os.path.isdir(path):
        return _check_folder(path)
    if base_model.lower().endswith(".gguf"):
        return _check_gguf(path)
    if _looks_like_path(base_model) or not _HUB_ID.fullmatch(base_model):
        return _error(
            f"base_model: there is no folder or .gguf file {base_model!r} here, and it is no Hub id (org/name) either"
        )
    return check_repo(base_model, "model", "base_model", token)


def local_path(base_model: str) -> Path:
    """The path that a base model may be. It is to be asked about by os.path, which takes any text for a path."""
    return Path(os.path.expanduser(base_model))


def _looks_like_path(base_model: str) -> bool:
    return base_model.startswith(("/", "./", "../", "~")) or base_model.count("/") > 1


def _check_folder(path: Path) -> Finding:
    config = path / "config.json"
    if not config.is_file():
        return _error(f"base_model: the folder {path} has no config.json, so it holds no transformers model")
    try:
        json.loads(config.read_bytes())
    except ValueError as error:
        return _error(f"base_model: {config} is no valid JSON ({error})")
    if not any(file for pattern in _WEIGHTS for file in path.glob(pattern)):
        return _error(f"base_model: the folder {path} has no weights (*.safetensors)")
    return Finding()


def _check_gguf(path: Path) -> Finding:
    if not os.path.isfile(path):
        return _error(f"base_model: there is no file {str(path)!r} on this machine")
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            return _error(f"base_model: {path} is not a GGUF file, whatever its name says")
    return Finding()


def _error(message: str) -> Finding:
    return Finding(passed=False, errors=(message,))
