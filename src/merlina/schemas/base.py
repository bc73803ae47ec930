"""What every model here shares: strict types, no unknown fields, no NaN."""

from __future__ import annotations

import types
import typing
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, SecretStr, ValidationInfo, field_validator


def _clean_token(value: SecretStr) -> SecretStr:
    """Without the white space that pasting brings. Raises ValueError where no header could carry it."""
    text = value.get_secret_value().strip()
    if not text.isascii() or not text.isprintable() or " " in text:
        raise ValueError("holds characters that no token has")
    return SecretStr(text)


Token = Annotated[SecretStr, AfterValidator(_clean_token)]


class RequestModel(BaseModel):
    """Base of everything a client sends: unknown fields, wrong types, NaN and infinities are errors.

    A whole number may be written as `8.0`, as JSON allows.
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
    """Whether a field is an integer, or a list of them, and never a float."""
    if typing.get_origin(annotation) in (list, typing.Union, types.UnionType):
        parts = typing.get_args(annotation)
        return float not in parts and any(map(_holds_integers, parts))
    return annotation is int


def _as_integers(value: Any) -> Any:
    if isinstance(value, list):
        return [_as_integers(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 2**53 else value


class ResponseModel(BaseModel):
    """Base of everything the server answers."""

    model_config = ConfigDict(frozen=True, protected_namespaces=(), ser_json_inf_nan="null")
