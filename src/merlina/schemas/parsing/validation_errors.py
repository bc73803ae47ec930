"""pydantic's validation errors as findings: the dotted path of the field, and what is allowed."""

from __future__ import annotations

import difflib
import json
import re
import typing
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ValidationError, WrapValidator
from pydantic_core import PydanticCustomError

from merlina.errors import Finding

# Values of these fields may be tokens and are never shown.
_SECRET_NAME = re.compile(r"token|key|secret|password", re.IGNORECASE)
_MAX_PATH = 200
_AT_FIELD = "at_field"
# Replacements for texts of pydantic that name its own types or functions, or show a regular expression.
_TEXTS = {
    "model_type": "should be a JSON object",
    "model_attributes_type": "should be a JSON object",
    "dict_type": "should be a JSON object",
    "list_type": "should be a list",
    "string_unicode": "contains half of a surrogate pair, which is not valid text",
    "string_pattern_mismatch": "does not have the required form",
    "int_parsing": "should be a valid integer",
    "int_parsing_size": "is too large",
    "int_from_float": "should be a valid integer",
    "float_parsing": "should be a valid number",
    "bool_parsing": "should be a valid boolean",
}
_SUBJECT = re.compile(r"^(Value error, |(Input|String|List|Dictionary) (?=should|must))")
# Error types of our own validators, in contrast to those of pydantic.
OWN_TYPES = ("value_error", _AT_FIELD)


def at_field(name: str, problem: str) -> PydanticCustomError:
    """Return the error to raise from a validator of a whole model, attributed to the field `name`."""
    return PydanticCustomError(_AT_FIELD, "{field}: {problem}", {"field": name, "problem": problem})


def describe(error: ValidationError, model: type[BaseModel]) -> list[Finding]:
    """Return a finding for each error that pydantic reported while validating `model`."""
    return [describe_one(dict(problem), model) for problem in error.errors(include_url=False, include_context=True)]


def describe_one(problem: dict[str, Any], model: type[BaseModel] | None) -> Finding:
    """Return one of pydantic's error dicts as a finding; for an unknown field, suggest the most similar known one."""
    loc = [part for part in problem["loc"] if part != "[key]"]
    path = ".".join(str(part) for part in loc)[:_MAX_PATH]
    if problem["type"] == "extra_forbidden":
        return Finding(f"unknown field{_nearest(str(loc[-1]), _fields_at(model, loc[:-1]))}", path)
    if problem["type"] == "missing":
        return Finding("required, but missing", path)
    if problem["type"] == _AT_FIELD:
        context = problem["ctx"]
        return Finding(context["problem"], ".".join(map(str, [*loc, context["field"]])))
    text = _TEXTS.get(problem["type"]) or _SUBJECT.sub("", problem["msg"]).replace(" after validation", "")
    shown = "" if _SECRET_NAME.search(str(loc[-1]) if loc else "") else _shown(problem.get("input"))
    has_value = problem["type"] not in ("value_error", "too_short", "too_long") and shown
    return Finding(f"{text}, not {shown}" if has_value else text, path or None)


def _shown(value: Any) -> str:
    """Return a short representation of an invalid value, or an empty string for containers."""
    if value is None or isinstance(value, (bool, int, float)):
        return json.dumps(value)
    if isinstance(value, str):
        return repr(value if len(value) <= 60 else value[:57] + "…")
    return ""


def _nearest(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""


def _fields_at(model: type[BaseModel] | None, loc: Sequence[str | int]) -> list[str]:
    """Return the field names of the models that may be at the path `loc` inside `model`."""
    annotations: list[Any] = [model]
    for part in loc:
        annotations = [found for each in annotations for found in _inside(each, part)]
    return [name for each in annotations for found in _models_in(each) for name in found.model_fields]


def _inside(annotation: Any, part: str | int) -> list[Any]:
    """Return the annotations of what may be at the field, key or index `part` of a value."""
    if _is_model(annotation):
        field = annotation.model_fields.get(str(part))
        return [] if field is None else [field.annotation]
    if typing.get_origin(annotation) in (list, dict):
        return [typing.get_args(annotation)[-1]]
    return [found for argument in _alternatives(annotation) for found in _inside(argument, part)]


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    """Return the models that a value with this annotation may have."""
    if _is_model(annotation):
        return [annotation]
    if typing.get_origin(annotation) in (list, dict):
        return []
    return [found for argument in _alternatives(annotation) for found in _models_in(argument)]


def _alternatives(annotation: Any) -> Sequence[Any]:
    """Return the parts of a union or an annotated type, with those from which a validator makes another one."""
    return [annotation.json_schema_input_type] if isinstance(annotation, WrapValidator) else typing.get_args(annotation)


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)
