"""Places that must agree with a registry and that no other test compares; ARCHITECTURE.md's checklists name them."""

from __future__ import annotations

import inspect
import re
from typing import get_args

import typer

from merlina.api.page import _VIEWS
from merlina.cli.main import commands
from merlina.client import Client
from merlina.data.row_formats.registry import ROW_FORMATS
from merlina.schemas.datasets.config import FormatType, SourceOrder, TrainingMode
from merlina.schemas.training.method import LossType
from tests.docs.pages import FOLDER, PAGES, REPOSITORY, inline_code

UI = REPOSITORY / "ui" / "src"


def test_the_page_offers_every_chat_format() -> None:
    text = (UI / "components/new-run/DatasetSection.svelte").read_text()
    (formats,) = re.findall(r"const formats: .*?= \[(.*?)\];", text, re.DOTALL)
    assert set(re.findall(r"\['(\w+)',", formats)) == set(get_args(FormatType))


def _text(module: str) -> str:
    return (UI / f"lib/new-run/{module}.ts").read_text()


def test_the_page_offers_every_row_format_by_its_title() -> None:
    (formats,) = re.findall(r"const ROW_FORMATS: .*?= \[(.*?)\n\];", _text("row-formats"), re.DOTALL)
    titles = {name: converter.title for name, converter in ROW_FORMATS.items()}
    assert dict(re.findall(r"\['(\w+)', '(.*?)'\],", formats)) == titles


def test_the_page_offers_every_order_of_sources() -> None:
    (orders,) = re.findall(r"const SOURCE_ORDERS: .*?= \[(.*?)\n\];", _text("sources"), re.DOTALL)
    assert set(re.findall(r"\['(\w+)',", orders)) == set(get_args(SourceOrder))


def test_every_training_method_is_in_the_table_of_methods() -> None:
    methods = _section((FOLDER / "settings-of-a-run.md").read_text(), "Methods").split("\n### ")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", methods, re.MULTILINE)) - {"training_mode"} == set(get_args(TrainingMode))


def test_every_loss_of_dpo_is_in_the_table_of_losses() -> None:
    methods = _section((FOLDER / "settings-of-a-run.md").read_text(), "Methods")
    losses = methods.split("\n### Losses of `dpo`\n")[1].split("\n```")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", losses, re.MULTILINE)) - {"loss_type"} == set(get_args(LossType))


def test_the_page_has_a_name_for_every_training_method() -> None:
    (names,) = re.findall(r"const METHODS: .*?= \{(.*?)\};", (UI / "lib/run-summary.ts").read_text(), re.DOTALL)
    assert set(re.findall(r"(\w+): '", names)) == set(get_args(TrainingMode))


def test_every_method_of_the_client_is_in_its_table() -> None:
    methods = {name for name, _ in inspect.getmembers(Client, inspect.isfunction) if not name.startswith("_")}
    assert methods - {"close"} <= set(inline_code(FOLDER / "api.md"))


def test_every_command_is_documented() -> None:
    text = "\n".join(page.read_text() for page in [REPOSITORY / "README.md", *PAGES])
    assert not [name for name in typer.main.get_group(commands).commands if f"merlina {name}" not in text]


def test_the_server_knows_every_view_of_the_page() -> None:
    text = (UI / "lib/route.ts").read_text()
    named = set(re.findall(r"first === '(\w+)'", text))
    assert {view.split("/")[1] for view in _VIEWS} - {""} == named


def _section(text: str, title: str) -> str:
    return text.split(f"\n## {title}\n")[1].split("\n## ")[0]
