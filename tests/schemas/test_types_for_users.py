"""A user's type checker without pydantic's plugin must accept what the schemas accept."""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import BaseModel

import merlina.schemas

pytestmark = pytest.mark.slow

_SCRIPT = """\
from typing import Any

from merlina import AsyncClient, Client, DatasetConfig, TrainingConfig
from merlina.schemas.datasets.sources import DatasetSource

source = DatasetSource(source_type="local_file", file_path="pairs.jsonl")
config = TrainingConfig(base_model="org/model", output_name="tuned", dataset=DatasetConfig(source=source))


def train(client: Client) -> str:
    return client.train(config).job_id


async def train_later(client: AsyncClient) -> str:
    return (await client.train(config)).job_id


def build_all(value: Any) -> None:
"""


def test_strict_mypy_accepts_every_schema_with_its_required_fields_alone(
    tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    calls = [_call(model) for model in _schemas()]
    assert len(calls) > 50
    script = tmp_path / "script.py"
    script.write_text(_SCRIPT + "".join(f"    {line}\n" for call in calls for line in call))

    # The cache of the last run saves most of the time; mypy checks again what has changed since.
    cache = pytestconfig.cache.mkdir("mypy")
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--cache-dir", str(cache)]
    result = subprocess.run([*command, str(script)], capture_output=True, text=True, timeout=200, check=False)

    assert result.returncode == 0, result.stdout[-2000:] + result.stderr


def _schemas() -> list[type[BaseModel]]:
    found = []
    for module in pkgutil.iter_modules(merlina.schemas.__path__, "merlina.schemas."):
        values = vars(importlib.import_module(module.name)).values()
        models = [value for value in values if isinstance(value, type) and issubclass(value, BaseModel)]
        found += [model for model in models if model.__module__ == module.name and model.__name__.isidentifier()]
    return found


def _call(model: type[BaseModel]) -> tuple[str, str]:
    """Return the lines that import `model` and build it from its required fields."""
    needed = [name for name, field in model.model_fields.items() if field.is_required()]
    arguments = ", ".join(f"{name}=value" for name in needed)
    return f"from {model.__module__} import {model.__name__}", f"{model.__name__}({arguments})"
