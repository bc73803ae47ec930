"""Base classes of the API's request and response models: strict types, no unknown fields, no NaN."""

from __future__ import annotations

import types
import typing
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, SecretStr, ValidationInfo, field_validator


def _clean_token(value: SecretStr) -> SecretStr:
    """Return the token without surrounding whitespace. Raises ValueError if it cannot be sent in an HTTP header."""
    text = value.get_secret_value().strip()
    if not text.isascii() or not text.isprintable() or " " in text:
        raise ValueError("contains characters that are not valid in a token")
    return SecretStr(text)


Token = Annotated[SecretStr, AfterValidator(_clean_token)]


class RequestModel(BaseModel):
    """Base of everything a client sends: unknown fields, wrong types, NaN and infinities are errors.

    An integer may be written as `8.0`, since JSON does not distinguish it from `8`.
    """

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        frozen=True,
        allow_inf_nan=False,
        hide_input_in_errors=True,
        protected_namespaces=(),
    )

    @field_validator("*", mode="before")
    @classmethod
    def _whole_numbers(cls, value: Any, info: ValidationInfo) -> Any:
        assert info.field_name
        return _as_integers(value) if _holds_integers(cls.model_fields[info.field_name].annotation) else value


def _holds_integers(annotation: Any) -> bool:
    """Return whether a field is an integer or a list of integers, and never a float."""
    if typing.get_origin(annotation) in (list, typing.Union, types.UnionType):
        parts = typing.get_args(annotation)
        return float not in parts and any(map(_holds_integers, parts))
    return annotation is int


def _as_integers(value: Any) -> Any:
    if isinstance(value, list):
        return [_as_integers(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 2**53 else value


class ResponseModel(BaseModel):
    """Base of everything the server sends."""

    model_config = ConfigDict(frozen=True, protected_namespaces=(), ser_json_inf_nan="null")
