"""The loading instructions of a finished model, read from its card, which `finished_model/loading_code` writes."""

from __future__ import annotations

import re
from pathlib import Path

from merlina.errors import NotFoundError

_CARD = "README.md"
_MAX_CARD_CHARACTERS = 256 * 1024
_PYTHON = re.compile(r"^```python\n(.+?)^```$", re.MULTILINE | re.DOTALL)


def read_loading_code(target_dir: str, output_dir: str | None) -> str:
    """Return the Python code that defines `model` and `tokenizer`. Raises NotFoundError if the model card has none.

    The card names `target_dir`, in which the run saved the model. A later run may have moved the model to `output_dir`
    and saved its own in that place.
    """
    if output_dir is None:
        raise NotFoundError("The job has not saved a model")
    card = Path(output_dir) / _CARD
    try:
        with card.open(encoding="utf-8", errors="replace") as file:
            found = _PYTHON.search(file.read(_MAX_CARD_CHARACTERS))
    except OSError as error:
        raise NotFoundError(f"{card} cannot be read: {error.strerror}") from error
    if found is None:
        raise NotFoundError(f"{card} no longer contains Python code")
    return found[1].rstrip().replace(repr(target_dir), repr(output_dir))
