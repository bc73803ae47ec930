"""Every example of the documentation is run, its tables are those of the code, and what it names is there."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

from merlina.schemas.datasets import FindingKind
from tests.docs.tables import DOCS, TABLES, with_table
from tests.harness import Server, pairs_file

PAGES = sorted(DOCS.glob("*.md"))
ROOT = DOCS.parent
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server as someone who follows the pages would have it, started in the folder they work in."""
    folder = tmp_path_factory.mktemp("reader")
    server = Server(folder, {"MAX_CONCURRENT_JOBS": "2"}).start()
    pairs_file(folder / "pairs.jsonl")
    yield server
    server.kill()
    server.end_workers()


def blocks(page: Path) -> list[tuple[str, str]]:
    return FENCE.findall(page.read_text())


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_every_example_runs(page: Path, reader: Server, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(reader.root)
    namespace: dict[str, Any] = {"__name__": "example"}
    for language, text in blocks(page):
        code = text.replace("localhost:8000", f"127.0.0.1:{reader.port}").replace(MODEL, str(tiny_model))
        if language == "python":
            exec(compile(code, f"{page.name}: {text[:60]!r}", "exec"), namespace)
        elif language == "bash":
            run_bash(code, reader)
        elif language == "json":
            json.loads(code)
        else:
            assert language in ("text", "ini", "nginx"), language


def run_bash(code: str, server: Server) -> None:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "MERLINA_URL": server.url}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", code],
        env=environment, cwd=server.root, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, f"{code}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr
    assert '"Internal error' not in done.stdout


@pytest.mark.parametrize("page", TABLES)
def test_tables_are_those_of_the_code(page: str) -> None:
    name, table = TABLES[page]
    text = (DOCS / page).read_text()
    assert text == with_table(text, name, table()), "python -m tests.docs.tables writes the tables anew"


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md", ROOT / "ARCHITECTURE.md", ROOT / "CONTRIBUTING.md"])
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]*)(?:#[^)]*)?\)", page.read_text()):
        assert target.startswith("http") or (page.parent / target).exists(), target


def test_every_endpoint_finding_and_command_is_told_of(reader: Server) -> None:
    api = (DOCS / "api.md").read_text()
    with reader.client() as client:
        for endpoint in client.info().endpoints:
            assert endpoint in api, endpoint
    findings = (DOCS / "datasets.md").read_text()
    assert all(f"`{kind}`" in findings for kind in get_args(FindingKind))
