"""The generation configuration of a finished model, with the tokens that end its answers."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from transformers import GenerationConfig

GENERATION_CONFIG_FILE = "generation_config.json"


def write_generation_config(folder: Path, model: Any, *end_tokens: int | None) -> None:
    """Write the model's generation settings, extended by the tokens that ended answers in training.

    These need not include the EOS: that of a base model often differs from the end token of the chat format. The file
    is written for an adapter, too.
    """
    original = getattr(model, "generation_config", None) or GenerationConfig()
    listed = original.eos_token_id if isinstance(original.eos_token_id, list) else [original.eos_token_id]
    unique = list(dict.fromkeys(token for token in (*listed, *end_tokens) if token is not None))
    settings = copy.deepcopy(original)
    settings.eos_token_id = unique[0] if len(unique) == 1 else unique or None
    # save_pretrained refuses changed settings that are unused, which many published models have.
    settings.to_json_file(folder / GENERATION_CONFIG_FILE, keys_to_pop=["compile_config"])
