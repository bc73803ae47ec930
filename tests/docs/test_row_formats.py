"""Every example in the table of row formats has its format and gives the pair that the page states."""

from __future__ import annotations

import json
import re
from typing import get_args

import pytest

from merlina.data.conversation import Pair, assistant
from merlina.data.row_formats.conversion import conversion_of
from merlina.schemas.datasets.config import DatasetConfig, RowFormat
from tests.docs.pages import FOLDER

_PAGE = (FOLDER / "datasets.md").read_text().split("\n## Row formats\n")[1].split("\n### ")[0]
EXAMPLES = re.findall(r"^\| `(\w+)` \| `(\{.*?\})` \|", _PAGE, re.MULTILINE)
_CONFIG = DatasetConfig.model_validate({"source": {"source_type": "local_file", "file_path": "rows.jsonl"}})


def test_the_table_has_every_format() -> None:
    assert [name for name, _ in EXAMPLES] == list(get_args(RowFormat))


@pytest.mark.parametrize(("name", "text"), EXAMPLES)
def test_an_example_gives_the_pair_that_the_page_states(name: RowFormat, text: str) -> None:
    row = json.loads(text)
    rows = [row, {**row, "response": "A hill.", "helpfulness": 0}] if name == "helpsteer" else [row]
    compared = "`sft` only" not in _line(name) and name != "unpaired"
    conversion = conversion_of(_CONFIG, rows, "both" if compared else "chosen")
    assert conversion.detected == name
    (pair,) = conversion.outcomes(rows)
    assert isinstance(pair, Pair)
    assert [turn.content.replace("\n", " ") for turn in pair.prompt] == ["Name a river."]
    assert pair.answers == (assistant("The Rhine."), *([assistant("A hill.")] if compared else []))


def _line(name: str) -> str:
    return next(line for line in _PAGE.splitlines() if line.startswith(f"| `{name}` |"))
