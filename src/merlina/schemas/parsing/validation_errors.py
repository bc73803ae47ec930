"""A failed validation in words: one line a field, by its dotted path, with what is allowed."""

from __future__ import annotations

import difflib
import json
import re
import typing
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticCustomError

# A value that was meant to be a token is never shown, whatever is wrong with it.
_SECRET_NAME = re.compile(r"token|key|secret|password", re.IGNORECASE)
_LONGEST_PATH = 200
_AT_FIELD = "at_field"
# Instead of the library's text where that names a type or function of its own, or shows a regular expression.
_TEXTS = {
    "model_type": "should be a JSON object",
    "model_attributes_type": "should be a JSON object",
    "dict_type": "should be a JSON object",
    "list_type": "should be a list",
    "string_unicode": "holds half of a surrogate pair, which no text can have",
    "string_pattern_mismatch": "does not have the form that is needed",
    "int_parsing": "should be a valid integer",
    "int_parsing_size": "is too large",
    "int_from_float": "should be a valid integer",
    "float_parsing": "should be a valid number",
    "bool_parsing": "should be a valid boolean",
}
_SUBJECT = re.compile(r"^(Value error, |(Input|String|List|Dictionary) (?=should|must))")
# What a validator of ours finds, rather than pydantic itself.
OWN_TYPES = ("value_error", _AT_FIELD)


def at_field(name: str, problem: str) -> PydanticCustomError:
    """To be raised by a validator of a whole model whose fields don't fit together: `name` is the one to blame."""
    return PydanticCustomError(_AT_FIELD, "{field}: {problem}", {"field": name, "problem": problem})


def describe(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """One line for each problem pydantic found while building `model`."""
    return [describe_one(dict(problem), model) for problem in error.errors(include_url=False, include_context=True)]


def describe_one(problem: dict[str, Any], model: type[BaseModel] | None) -> str:
    """One of pydantic's error dicts as `path: what is wrong`, naming the nearest field where one is unknown."""
    loc = [part for part in problem["loc"] if part != "[key]"]
    path = ".".join(str(part) for part in loc)[:_LONGEST_PATH]
    if problem["type"] == "extra_forbidden":
        return f"{path}: unknown field{_nearest(str(loc[-1]), _fields_at(model, loc[:-1]))}"
    if problem["type"] == "missing":
        return f"{path}: required, but missing"
    if problem["type"] == _AT_FIELD:
        return ".".join(map(str, [*loc, problem["msg"]]))
    text = _TEXTS.get(problem["type"]) or _SUBJECT.sub("", problem["msg"]).replace(" after validation", "")
    shown = "" if _SECRET_NAME.search(str(loc[-1]) if loc else "") else _shown(problem.get("input"))
    has_value = problem["type"] not in ("value_error", "too_short", "too_long") and shown
    line = f"{text}, not {shown}" if has_value else text
    return f"{path}: {line}" if path else line


def _shown(value: Any) -> str:
    """A short, harmless picture of a refused value; containers are only named."""
    if value is None or isinstance(value, (bool, int, float)):
        return json.dumps(value)
    if isinstance(value, str):
        return repr(value if len(value) <= 60 else value[:57] + "…")
    return ""


def _nearest(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""


def _fields_at(model: type[BaseModel] | None, loc: Sequence[str | int]) -> list[str]:
    """The field names of the model that lies at `loc` inside `model`."""
    for part in loc:
        if model is None or part not in model.model_fields:
            return []
        model = _model_in(model.model_fields[str(part)].annotation)
    return list(model.model_fields) if model else []


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for arg in typing.get_args(annotation) if (found := _model_in(arg))), None)
