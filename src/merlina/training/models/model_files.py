"""The files of a base model: where they are, and what is wrong if they cannot be loaded."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError

from merlina.domain.model_names import is_gguf, local_path
from merlina.errors import ModelError, first_line
from merlina.hub_errors import describe_hub_error

_MAX_TEXT_FILE_BYTES = 256 * 1024**2
# Files that transformers reads as a whole into memory.
_TEXT_FILES = (
    "config.json", "generation_config.json", "adapter_config.json", "model.safetensors.index.json",
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "vocab.txt", "merges.txt", "spiece.model", "sentencepiece.bpe.model",
    "chat_template.jinja", "chat_template.json", "processor_config.json", "preprocessor_config.json",
)  # fmt: skip


def split_gguf(base_model: str) -> tuple[str, str | None]:
    """Split a `.gguf` path into folder and file name. Anything else is returned without a file."""
    path = local_path(base_model)
    if is_gguf(base_model):
        return str(path.parent), path.name
    return (str(path) if os.path.isdir(path) else base_model), None


def check_text_files(base_model: str) -> None:
    """Raise ModelError if a file of a local folder that is read as a whole is too large or not a regular file."""
    folder = Path(split_gguf(base_model)[0])
    for name in _TEXT_FILES if os.path.isdir(folder) else ():
        path = folder / name
        if not path.exists():
            continue
        if not path.is_file():
            raise ModelError(f"{path} is not a regular file")
        if (size := path.stat().st_size) > _MAX_TEXT_FILE_BYTES:
            raise ModelError(
                f"{path} has {size:,} bytes, more than the {_MAX_TEXT_FILE_BYTES:,} that any model's file of this name "
                "needs; copy the model again"
            )


@contextlib.contextmanager
def readable_errors(base_model: str, token: str | None = None) -> Iterator[None]:
    """Convert errors of the libraries into a ModelError about this model. Checks its files first."""
    check_text_files(base_model)
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        message = _message(error, base_model, token_given=token is not None)
        if message is None:
            raise
        raise ModelError(message) from error


def _message(error: Exception, base_model: str, *, token_given: bool) -> str | None:
    hub = describe_hub_error(error, base_model, "model", token_given=token_given)
    if hub is not None:
        return hub
    if isinstance(error, (SafetensorError, json.JSONDecodeError)):
        return f"The files of {base_model!r} are damaged: {error}"
    if isinstance(error, (OSError, ValueError, KeyError, ImportError, RuntimeError)):
        return f"{base_model!r} cannot be loaded: {first_line(error)}"
    return None
