"""Reads a TrainingConfig from a JSON or YAML file."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from merlina.errors import InvalidRequestError, NotFoundError
from merlina.schemas.parsing.json_text import TOO_DEEP, TOO_MANY_DIGITS, why_not_json
from merlina.schemas.parsing.validation_errors import describe
from merlina.schemas.training.config import TrainingConfig


class _Loader(yaml.SafeLoader):
    """Reads `5e-6` as a number, as YAML 1.2 and JSON do; YAML 1.1 requires `5.0e-6`."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]+"),
    list("-+0123456789."),
)


# By a part of the parser's message; messages that are not listed are shown as they are.
_YAML_PROBLEMS = {
    "mapping values are not allowed": "a value with a second colon must be quoted",
    "could not find expected ':'": "a name is not followed by a colon",
    "'\\t' that cannot start": "indentation with a tab instead of spaces",
    "cannot start any token": "a string that begins with this character must be quoted",
    "unexpected end of stream": "a quoted string is not closed",
    "expected <block end>": "a line does not match the lines above it; check its indentation",
    "expected ',' or": "a list or mapping in brackets is not closed or lacks a comma",
    "could not determine a constructor": "a tag (!) is not supported",
    "undefined alias": "a reference (*) to an anchor that does not exist",
    "unhashable key": "a list or mapping is used as a name",
}


def read_config_file(path: Path) -> TrainingConfig:
    """Return the configuration in a file. Raises NotFoundError, or InvalidRequestError with a finding per field."""
    content = read_mapping(path)
    try:
        return TrainingConfig.model_validate(content)
    except ValidationError as error:
        raise InvalidRequestError(f"{path} is not a valid configuration", describe(error, TrainingConfig)) from error


def read_mapping(path: Path) -> dict[str, Any]:
    """Return the file's top-level mapping without checking its fields."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise NotFoundError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InvalidRequestError(f"{path} is not a text file in UTF-8") from error
    content = _parse_json(path, text) if path.suffix.lower() == ".json" else _parse_yaml(path, text)
    if not isinstance(content, dict):
        raise InvalidRequestError(f"{path} must contain one mapping with the fields of a TrainingConfig")
    return content


def _parse_json(path: Path, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidRequestError(f"{path} {why_not_json(error)}") from error


def _parse_yaml(path: Path, text: str) -> Any:
    try:
        return yaml.load(text, _Loader)  # noqa: S506
    except yaml.MarkedYAMLError as error:
        raise InvalidRequestError(f"{path} is not valid YAML: {_describe(error)}{_place(error)}") from error
    except yaml.reader.ReaderError as error:
        before = text[: error.position]
        place = f"line {before.count(chr(10)) + 1}, column {error.position - before.rfind(chr(10))}"
        raise InvalidRequestError(f"{path} is not a text file: it contains a control character at {place}") from error
    except RecursionError as error:
        raise InvalidRequestError(f"{path} {TOO_DEEP}") from error
    except ValueError as error:
        problem = TOO_MANY_DIGITS if "digits" in str(error) else f"contains a date or time that does not exist: {error}"
        raise InvalidRequestError(f"{path} {problem}") from error


def _place(error: yaml.MarkedYAMLError) -> str:
    mark = error.problem_mark or error.context_mark
    return f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""


def _describe(error: yaml.MarkedYAMLError) -> str:
    """Return the parser's error in one line."""
    problem = str(error.problem or error.context)
    words = next((words for part, words in _YAML_PROBLEMS.items() if part in problem), None)
    return words or " ".join(problem.replace("<stream end>", "the end of the file").split())
