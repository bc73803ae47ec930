"""What a model's configuration states about its rotary embeddings."""

from __future__ import annotations

from typing import Any


def rope_length_limits(config: Any) -> tuple[int, ...]:
    """Return the text lengths beyond which a model rotates all positions of a pass by other angles (see `rotary`)."""
    limits = set()
    for parameters in rope_parameter_sets(config):
        if parameters.get("rope_type") == "longrope":
            limits.add(parameters["original_max_position_embeddings"])
        elif "dynamic" in (parameters.get("rope_type") or ""):
            # After a longer pass, transformers keeps its frequencies even for a pass of exactly the maximum length.
            limits.add(config.get_text_config().max_position_embeddings - 1)
    return tuple(sorted(limits))


def rope_parameter_sets(config: Any) -> list[dict[str, Any]]:
    """Return the parameters of a model's rotary embeddings: one set for all layers and one for each kind of layer."""
    parameters = getattr(config.get_text_config(), "rope_parameters", None) or {}
    return [parameters, *(value for value in parameters.values() if isinstance(value, dict))]
