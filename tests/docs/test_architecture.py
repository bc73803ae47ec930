"""ARCHITECTURE.md and similar documents against the code: the diagram of states, and every file that they name."""

from __future__ import annotations

import re
import tomllib
from itertools import combinations
from pathlib import Path

import pytest

from merlina.domain.job_states import TRANSITIONS
from tests.docs.pages import REPOSITORY, Block, blocks, inline_code

ARCHITECTURE = REPOSITORY / "ARCHITECTURE.md"
_NAMES = ("CONTRIBUTING.md", "README.md", "benchmarks/README.md")
FOR_DEVELOPERS = (ARCHITECTURE, *(REPOSITORY / name for name in _NAMES))
_MERMAID = [block for block in blocks(ARCHITECTURE) if block.language == "mermaid"]
# Where the path of a file may begin, and the suffixes that a document may leave out.
_ROOTS = ("", "src/merlina", "src/merlina/training", "tests", "ui")
_SUFFIXES = ("", ".py")
_PATH = re.compile(r"[\w.-]+(/[\w.-]+)+/?|[\w-]+\.(py|ts|svelte|md)|[a-z]+/")
_IN_DIAGRAM = re.compile(r"\b(?:api|chat|cli|data|executors|jobs|preflight|storage|training|worker)(?:/\w+)+|\w+\.py")
# Files and folders of a running server, and what only looks like a path.
_ELSEWHERE = re.compile(
    r"(data|models|runs|build|adapter|org)/.*|application/.*|\.venv/.*|http.*|merlina/merlina|events\.jsonl|text/.*"
)


def test_no_folder_holds_more_than_fifteen_modules() -> None:
    """A larger package holds two subjects."""
    packages = [path.parent for path in (REPOSITORY / "src/merlina").rglob("__init__.py")]
    modules = {package: [*package.glob("[!_]*.py")] for package in packages}
    for file in (REPOSITORY / "ui/src").rglob("*.*"):
        if file.suffix in (".ts", ".svelte") and ".test" not in file.name:
            modules.setdefault(file.parent, []).append(file)
    assert {str(folder): len(files) for folder, files in modules.items() if len(files) > 15} == {}


def test_the_diagram_of_states_is_the_table_of_transitions() -> None:
    (diagram,) = (block for block in _MERMAID if block.text.startswith("stateDiagram-v2"))
    drawn = _drawn_transitions(diagram)
    assert drawn == {(state, new) for state, following in TRANSITIONS.items() for new in following}


def test_the_table_of_layers_is_the_contract_of_imports() -> None:
    contracts = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (layers,) = (contract["layers"] for contract in contracts if contract["type"] == "layers")
    rows = re.findall(r"^\| \d+ \| ([^|]+) \|", ARCHITECTURE.read_text(), re.MULTILINE)
    assert [set(re.findall(r"(\w+)(?:/|\.py)`", row)) for row in rows] == [
        set(re.findall(r"\.(\w+)", one)) for one in layers
    ]


def test_diagrams_hold_no_semicolon_which_would_end_a_message() -> None:
    assert len(_MERMAID) == 6
    assert not [block.line for block in _MERMAID if ";" in block.text]


@pytest.mark.parametrize("page", FOR_DEVELOPERS, ids=lambda page: page.parent.name + "/" + page.name)
def test_every_file_that_is_named_is_there(page: Path) -> None:
    named = {text.split("::")[0] for text in inline_code(page)}
    paths = {text for text in named if _PATH.fullmatch(text) and not _ELSEWHERE.fullmatch(text)}
    if page == ARCHITECTURE:
        paths |= {path for block in _MERMAID for path in _IN_DIAGRAM.findall(block.text)}
    assert not sorted(path for path in paths if not _is_there(path))


def _drawn_transitions(diagram: Block) -> set[tuple[str, str]]:
    """The arrows between states. A box stands for each of its states; within it, any later state may follow."""
    boxes: dict[str, list[str]] = {}
    arrows: list[tuple[str, str]] = []
    box: str | None = None
    for line in map(str.strip, diagram.text.splitlines()):
        if opened := re.match(r'state ".+" as (\w+) \{', line):
            box = opened[1]
            boxes[box] = []
        elif line == "}":
            box = None
        elif arrow := re.match(r"(\w+) --> (\w+)", line):
            arrows.append((arrow[1], arrow[2]))
            if box is not None:
                boxes[box] = list(dict.fromkeys([*boxes[box], arrow[1], arrow[2]]))
    outside = {(a, b) for old, new in arrows for a in boxes.get(old, [old]) for b in boxes.get(new, [new])}
    return outside | {pair for states in boxes.values() for pair in combinations(states, 2)}


def _is_there(path: str) -> bool:
    if "/" not in path.rstrip("/") and not path.endswith("/"):
        return any(file.name == path for root in ("src", "tests", "ui/src", "ui", "docs", "") for file in _files(root))
    return any((REPOSITORY / root / f"{path}{suffix}").exists() for root in _ROOTS for suffix in _SUFFIXES)


def _files(root: str) -> list[Path]:
    folder = REPOSITORY / root
    pattern = "**/*" if root in ("src", "tests", "ui/src", "docs") else "*"
    return [path for path in folder.glob(pattern) if "node_modules" not in path.parts]
