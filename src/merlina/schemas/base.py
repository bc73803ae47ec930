"""What every model here shares: strict types, no unknown fields, no NaN."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, SecretStr


def _clean_token(value: SecretStr) -> SecretStr:
    """Without the white space that pasting brings. Raises ValueError where no header could carry it."""
    text = value.get_secret_value().strip()
    if not text.isascii() or not text.isprintable() or " " in text:
        raise ValueError("holds characters that no token has")
    return SecretStr(text)


Token = Annotated[SecretStr, AfterValidator(_clean_token)]


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
