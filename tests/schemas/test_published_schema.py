"""The published JSON schema of a data set accepts and refuses what the model does."""

from __future__ import annotations

import json
from typing import Any

import jsonschema_rs
import pytest
from pydantic import ValidationError

from merlina.schemas.datasets.config import DatasetConfig
from tests.ui.openapi import FILE

_SOURCE = {"source_type": "local_file", "file_path": "pairs.jsonl"}
_SOURCES = [{"source": _SOURCE}, {"source": _SOURCE, "weight": 2}]
_PUBLISHED = json.loads(FILE.read_text())


@pytest.mark.parametrize(
    ("dataset", "is_accepted"),
    [
        ({"source": _SOURCE}, True),
        ({"sources": _SOURCES}, True),
        ({"source": _SOURCE, "sources": _SOURCES}, True),
        ({"source": _SOURCE, "sources": None}, True),
        ({}, False),
        ({"sources": None}, False),
        ({"sources": []}, False),
        ({"eval_source": _SOURCE}, False),
    ],
)
@pytest.mark.parametrize("name", ["DatasetConfig", "DatasetRequest"])
def test_source_is_required_unless_there_are_sources(name: str, dataset: dict[str, Any], is_accepted: bool) -> None:
    schema = {"$ref": f"#/components/schemas/{name}", "components": _PUBLISHED["components"]}
    assert jsonschema_rs.is_valid(schema, dataset) is is_accepted
    if is_accepted:
        assert DatasetConfig.model_validate(dataset).source.file_path == "pairs.jsonl"
    else:
        with pytest.raises(ValidationError):
            DatasetConfig.model_validate(dataset)
