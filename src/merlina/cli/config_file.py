"""A TrainingConfig from a JSON or YAML file."""

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
from merlina.schemas.training import TrainingConfig


class _Loader(yaml.SafeLoader):
    """YAML as 1.2 and JSON have numbers: `5e-6` is one, where YAML 1.1 wants `5.0e-6`."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]+"),
    list("-+0123456789."),
)


# By what the parser's own messages hold; the others say in one line what was expected.
_YAML_PROBLEMS = {
    "mapping values are not allowed": "a second colon, which needs quotation marks",
    "could not find expected ':'": "a line has no colon after its name",
    "'\\t' that cannot start": "a tab where only spaces can indent",
    "cannot start any token": "a character that begins a text only within quotation marks",
    "unexpected end of stream": "a quotation has no end",
    "expected <block end>": "a line does not fit to those above it; check how far it is indented",
    "expected ',' or": "a list or mapping in brackets has no end, or lacks a comma",
    "could not determine a constructor": "a tag (!) that means nothing here",
    "undefined alias": "a reference (*) to an anchor that does not exist",
    "unhashable key": "a list or mapping where a name is needed",
}


def read_config_file(path: Path) -> TrainingConfig:
    """Raises NotFoundError, or InvalidRequestError naming each field that can't be."""
    content = read_mapping(path)
    try:
        return TrainingConfig.model_validate(content)
    except ValidationError as error:
        raise InvalidRequestError(f"{path} is not a valid configuration", describe(error, TrainingConfig)) from error


def read_mapping(path: Path) -> dict[str, Any]:
    """The file's top-level mapping, unchecked."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise NotFoundError(f"{path} can't be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InvalidRequestError(f"{path} is not a text file in UTF-8, as a configuration is") from error
    content = _parse_json(path, text) if path.suffix.lower() == ".json" else _parse_yaml(path, text)
    if not isinstance(content, dict):
        raise InvalidRequestError(f"{path} must hold one mapping of fields, as the API's TrainingConfig")
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
        raise InvalidRequestError(f"{path} is not valid YAML: {_in_words(error)}{_place(error)}") from error
    except yaml.reader.ReaderError as error:
        before = text[: error.position]
        place = f"line {before.count(chr(10)) + 1}, column {error.position - before.rfind(chr(10))}"
        raise InvalidRequestError(f"{path} is not a text file: it holds a control character at {place}") from error
    except RecursionError as error:
        raise InvalidRequestError(f"{path} {TOO_DEEP}") from error
    except ValueError as error:
        problem = TOO_MANY_DIGITS if "digits" in str(error) else f"holds a date or time that does not exist: {error}"
        raise InvalidRequestError(f"{path} {problem}") from error


def _place(error: yaml.MarkedYAMLError) -> str:
    mark = error.problem_mark or error.context_mark
    return f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""


def _in_words(error: yaml.MarkedYAMLError) -> str:
    """What the parser did not understand, in one line."""
    problem = str(error.problem or error.context)
    words = next((words for part, words in _YAML_PROBLEMS.items() if part in problem), None)
    return words or " ".join(problem.replace("<stream end>", "the end of the file").split())
