"""A TrainingConfig from a JSON or YAML file."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from merlina.errors import InvalidRequestError, NotFoundError
from merlina.schemas.problems import describe
from merlina.schemas.training import TrainingConfig


class _Loader(yaml.SafeLoader):
    """YAML as 1.2 and JSON have numbers: `5e-6` is one, where YAML 1.1 wants `5.0e-6`."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]+"),
    list("-+0123456789."),
)


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
        content = json.loads(text) if path.suffix.lower() == ".json" else yaml.load(text, _Loader)  # noqa: S506
    except OSError as error:
        raise NotFoundError(f"{path} can't be read: {error.strerror}") from error
    except (ValueError, yaml.YAMLError) as error:
        raise InvalidRequestError(f"{path} is neither JSON nor YAML that can be read: {error}") from error
    if not isinstance(content, dict):
        raise InvalidRequestError(f"{path} must hold one mapping of fields, as the API's TrainingConfig")
    return content
