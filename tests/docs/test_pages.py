"""Compare the documentation with the code: everything is described, and everything it names exists."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from typing import get_args

import pytest

from merlina.data.conversation import Message, Pair, assistant
from merlina.data.rendering.chat_formats import formatter
from merlina.domain.job_states import JobState
from merlina.schemas.datasets.config import DatasetFormat, FindingKind, FormatType
from tests.docs.pages import FOLDER, PAGES, REPOSITORY, anchors, inline_code, links
from tests.docs.tables import TABLES, with_table
from tests.harness import Server

_FOLDERS = ("src", "tests", "docs", "examples", "benchmarks")
_IN_REPOSITORY = re.compile(rf"({'|'.join(_FOLDERS)})/[\w./-]+|[A-Z]+\.md|\.env\.example|Makefile|pyproject\.toml")


@pytest.mark.parametrize("page", [*sorted(REPOSITORY.glob("*.md")), *PAGES], ids=lambda page: page.stem)
def test_links_have_targets(page: Path) -> None:
    for target in links(page):
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), target
        assert not anchor or anchor in anchors(there), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_named_files_exist(page: Path) -> None:
    for text in inline_code(page):
        if _IN_REPOSITORY.fullmatch(text):
            assert (REPOSITORY / text).exists(), text


@pytest.mark.parametrize("page", TABLES, ids=lambda page: page.stem)
def test_tables_match_the_code(page: Path) -> None:
    assert page.read_text() == with_table(page), "run: python -m tests.docs.tables"


def test_every_endpoint_is_described(server: Server) -> None:
    text = (FOLDER / "api.md").read_text()
    with server.client() as client:
        endpoints = client.info().endpoints
    assert not [endpoint for endpoint in endpoints if f"`{endpoint}`" not in text]


def test_every_endpoint_has_a_sentence() -> None:
    lines = [line for line in (FOLDER / "api.md").read_text().splitlines() if line]
    following = {heading: line for heading, line in pairwise(lines) if heading.startswith("### `")}
    assert not [heading for heading, line in following.items() if line.startswith(("```", "#", "|"))]


@pytest.mark.parametrize(
    ("page", "names"),
    [("api.md", get_args(JobState)), ("datasets.md", get_args(FindingKind)), ("datasets.md", get_args(FormatType))],
)
def test_every_name_is_explained(page: str, names: tuple[str, ...]) -> None:
    assert not set(names) - set(inline_code(FOLDER / page))


@pytest.mark.parametrize("name", ["chatml", "llama3", "mistral"])
def test_chat_formats_are_shown_as_implemented(name: FormatType) -> None:
    pair = Pair((Message("system", "{s}"), Message("user", "{p}")), assistant("{c}"), None)
    made = formatter(DatasetFormat(format_type=name), None)(pair)
    prompt, answer = (text.replace("\n", "⏎").replace("|", r"\|") for text in (made.prompt, made.chosen))
    assert f"| `{name}` | `{prompt}` | `{answer}` |" in (FOLDER / "datasets.md").read_text()


def test_quoted_errors_exist_in_the_code() -> None:
    # Join string literals that span lines; ignore values that are filled in.
    code = re.sub(r'"\s*\n\s*f?"', "", "".join(path.read_text() for path in (REPOSITORY / "src").rglob("*.py")))
    quotes = re.findall(r'^\| "([^|]+)" ?[^|]*\|', (FOLDER / "troubleshooting.md").read_text(), re.MULTILINE)
    parts = [part for quote in quotes for part in re.split(r"…|\d[\d.:]*", quote) if len(part.strip()) > 3]
    assert len(parts) > 20
    assert not [part for part in parts if part.strip() not in code]


def test_the_index_names_every_page() -> None:
    assert {FOLDER / target for target in links(FOLDER / "README.md") if "/" not in target} >= {
        page for page in PAGES if page.name != "README.md"
    }
