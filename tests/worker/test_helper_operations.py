"""Every operation has a function in a helper process, with the operation's argument and result types."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from pydantic import TypeAdapter

import merlina.worker.helper
from merlina.schemas.operations import CompareRows, CountRows, Operation
from merlina.worker.chat import process as chat
from merlina.worker.helper.process import OPERATIONS

pytestmark = pytest.mark.slow


def operations() -> list[type[Operation[Any]]]:
    return [kind for base in Operation.__subclasses__() for kind in base.__subclasses__()]


def test_every_operation_is_registered() -> None:
    assert {*OPERATIONS, *chat.OPERATIONS} == set(operations())


@pytest.mark.parametrize("kind", OPERATIONS, ids=lambda kind: kind.name)
def test_the_function_takes_the_operation_and_returns_its_result(kind: type[Operation[Any]]) -> None:
    module = importlib.import_module(f"merlina.worker.helper.{OPERATIONS[kind]}")
    function = getattr(module, kind.name)
    argument, result = get_type_hints(getattr(function, "__wrapped__", function)).values()
    assert argument is kind
    assert TypeAdapter(result).json_schema() == kind.result_type().json_schema()


def test_every_module_of_the_registry_exists() -> None:
    names = {module.name for module in pkgutil.iter_modules(merlina.worker.helper.__path__)}
    assert set(OPERATIONS.values()) <= names


def test_arguments_and_results_survive_a_round_trip() -> None:
    operation = CountRows(file=Path("/data/rows"), file_format="jsonl", max_row_mb=16)
    assert CountRows.model_validate(operation.model_dump(mode="json")) == operation
    assert (CountRows.name, CompareRows.name) == ("count_rows", "compare_rows")
    assert CompareRows.result_type().validate_python(None) is None
