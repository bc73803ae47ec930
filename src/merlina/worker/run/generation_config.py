"""What a finished model's answers end with, told to whoever generates with it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from transformers import GenerationConfig

GENERATION_CONFIG_FILE = "generation_config.json"


def write_generation_config(folder: Path, model: Any, *ends: int | None) -> None:
    """The model's own generation settings, ending an answer at `ends` too: at what ended one in training.

    That need not be the EOS: a base model's is often another than its chat format's. An adapter has the file beside it.
    """
    own = getattr(model, "generation_config", None) or GenerationConfig()
    listed = own.eos_token_id if isinstance(own.eos_token_id, list) else [own.eos_token_id]
    each = list(dict.fromkeys(token for token in (*listed, *ends) if token is not None))
    settings = copy.deepcopy(own)
    settings.eos_token_id = each[0] if len(each) == 1 else each or None
    # Its own way to save refuses what was changed and holds an idle setting, which many published models do.
    settings.to_json_file(folder / GENERATION_CONFIG_FILE, keys_to_pop=["compile_config"])
