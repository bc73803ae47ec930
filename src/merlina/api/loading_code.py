"""How a finished model is loaded, as its model card shows it: the card is written by what measured its figures."""

from __future__ import annotations

import re
from pathlib import Path

from merlina.errors import NotFoundError

_CARD = "README.md"
_LONGEST_CARD = 256 * 1024
_PYTHON = re.compile(r"^```python\n(.+?)^```$", re.MULTILINE | re.DOTALL)


def read_loading_code(output_dir: str | None) -> str:
    """Return the Python that defines `model` and `tokenizer`. Raises NotFoundError if no card holds it."""
    if output_dir is None:
        raise NotFoundError("The job has saved no model yet")
    card = Path(output_dir) / _CARD
    try:
        with card.open(encoding="utf-8", errors="replace") as file:
            found = _PYTHON.search(file.read(_LONGEST_CARD))
    except OSError as error:
        raise NotFoundError(f"{card} can't be read: {error.strerror}") from error
    if found is None:
        raise NotFoundError(f"{card} holds no Python code any more")
    return found[1].rstrip()
