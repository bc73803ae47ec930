"""The causal language model inside the wrapper of an adapter."""

from __future__ import annotations

from typing import Any


def unwrap(model: Any) -> Any:
    """Return the causal language model inside a peft model, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model
