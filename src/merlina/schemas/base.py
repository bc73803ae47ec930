"""What every model here shares: strict types, no unknown fields, no NaN."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Request(BaseModel):
    """Base of everything a client sends: unknown fields, wrong types, NaN and infinities are errors."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        frozen=True,
        allow_inf_nan=False,
        hide_input_in_errors=True,
        protected_namespaces=(),
    )


class Response(BaseModel):
    """Base of everything the server answers."""

    model_config = ConfigDict(frozen=True, protected_namespaces=(), ser_json_inf_nan="null")
