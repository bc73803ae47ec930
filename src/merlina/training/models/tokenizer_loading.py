"""The base model's tokenizer: from a Hub id, a local folder or a `.gguf` file.

Apart from the model, because a process that only tokenizes need not import what loads models, which takes a second.
"""

from __future__ import annotations

from typing import Any

from transformers import AutoTokenizer

from merlina.errors import ModelError
from merlina.training.models.model_files import readable_errors, split_gguf


def load_tokenizer(base_model: str, token: str | None, trust_remote_code: bool = False) -> Any:
    """Load a model's tokenizer and give it a pad token if it has none. Raises ModelError."""
    with readable_errors(base_model, token):
        name, file = split_gguf(base_model)
        tokenizer = AutoTokenizer.from_pretrained(
            name, token=token, trust_remote_code=trust_remote_code, **({"gguf_file": file} if file else {})
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.bos_token
    if tokenizer.pad_token is None:
        raise ModelError(f"The tokenizer of {base_model!r} has neither a pad nor an end token")
    return tokenizer
