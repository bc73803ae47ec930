"""Run every example of the documentation against one server.

Names on a page are replaced: the address by that of the test server, SmolLM2 by the tiny model, `/srv/merlina` by the
folder in which the server was started, example ids by the newest job, upload and comparison. Words after a fence:

- `bash error`: the command must fail
- `json response`: the `bash` block before it prints these keys, with values of the same types
- `json config`, `yaml config`: a whole TrainingConfig; `json part`, `yaml part`: some of its fields
- `json dataset`: a DatasetConfig
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from merlina.cli.config_file import read_mapping
from merlina.schemas.datasets.config import DatasetConfig
from merlina.schemas.parsing.stored_config import check_partial
from merlina.schemas.training.config import TrainingConfig
from tests.docs.pages import PAGES, REPOSITORY, Block, blocks
from tests.harness import Server, pairs_file

pytestmark = pytest.mark.slow

NVML = REPOSITORY / "tests" / "fakes" / "nvml"
NOT_RUN = ("", "console", "ini", "nginx", "text")
_SECONDS = 120


@dataclass
class Reader:
    """Reader who runs the blocks of a page from top to bottom."""

    server: Server
    model: Path
    namespace: dict[str, Any] = field(default_factory=lambda: {"__name__": "__main__"})
    printed: str = ""

    def follow(self, page: Path) -> None:
        for block in blocks(page):
            if block.language not in NOT_RUN:
                self._do(block, f"{page.name}:{block.line}")

    def _do(self, block: Block, where: str) -> None:
        text = self.rewritten(block.text)
        if block.language == "bash":
            self._run(text, where, should_fail="error" in block.marks)
        elif block.language == "python":
            self._execute(text, where, block.line)
        elif block.language in ("json", "yaml"):
            self._check(self._read(text, block.language), block.marks, where)
        else:
            pytest.fail(f"{where}: {block.language!r} is not a language that is run or one of {', '.join(NOT_RUN)}")

    def _read(self, text: str, language: str) -> Any:
        """Parse a file as the commands do."""
        file = self.server.root / f"shown.{language}"
        file.write_text(text)
        return json.loads(text) if language == "json" else read_mapping(file)

    def rewritten(self, text: str) -> str:
        for name, here in self._names().items():
            text = text.replace(name, here)
        return text

    def _names(self) -> dict[str, str]:
        with self.server.client() as client:
            jobs, uploads = client.history(limit=1).jobs, client.uploads().datasets
            comparisons = client.comparisons(jobs[0].job_id, limit=1).comparisons if jobs else []
        return {
            "localhost:8000": self.server.url.removeprefix("http://"),
            "HuggingFaceTB/SmolLM2-135M-Instruct": str(self.model),
            "/srv/merlina": str(self.server.root),
            **({"job_20260101_120000": jobs[0].job_id} if jobs else {}),
            **({"comparison_0123456789abcdef": comparisons[0].comparison_id} if comparisons else {}),
            **({"upload_20260101_120000_a1b2c3d4": uploads[0].dataset_id} if uploads else {}),
        }

    def _run(self, script: str, where: str, *, should_fail: bool) -> None:
        command = ["bash", "-euo", "pipefail", "-c", script]
        done = subprocess.run(
            command, cwd=self.server.root, env=self._environment(), capture_output=True, text=True, timeout=_SECONDS
        )
        said = f"{where}:\n{script}\n→ {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert (done.returncode != 0) == should_fail, said
        self.printed = done.stdout

    def _environment(self) -> dict[str, str]:
        path = f"{self.server.root / 'bin'}:{os.environ['PATH']}"
        return {**os.environ, "PATH": path, "MERLINA_URL": self.server.url}

    def _execute(self, source: str, where: str, line: int) -> None:
        code = compile("\n" * line + source, where, "exec")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of libraries that the examples use
            exec(code, self.namespace)

    def _check(self, content: Any, marks: tuple[str, ...], where: str) -> None:
        if "config" in marks:
            TrainingConfig.model_validate(content)
        if "part" in marks:
            assert not check_partial(content), where
        if "dataset" in marks:
            DatasetConfig.model_validate(content)
        if "response" in marks:
            real = json.loads(self.printed)
            assert content.keys() == real.keys() or all(key.startswith("job_") for key in content), (where, real)
            _compare(content, real, where)


def _compare(shown: Any, real: Any, where: str) -> None:
    """Check that the real response has the shown keys with values of the same types; `detail` must be equal."""
    if isinstance(shown, dict):
        assert isinstance(real, dict), (where, shown, real)
        assert shown.keys() <= real.keys(), (where, shown.keys() - real.keys(), real)
        for name, value in shown.items():
            if name == "detail":
                assert value == real[name], where
            else:
                _compare(value, real[name], f"{where} {name}")
    elif isinstance(shown, list):
        assert isinstance(real, list), (where, shown, real)
        if shown:
            assert real, (where, shown)
            _compare(shown[0], real[0], f"{where}[0]")
    elif shown is not None and real is not None:
        assert _kind(shown) == _kind(real), (where, shown, real)


def _kind(value: Any) -> str:
    return "number" if type(value) in (int, float) else type(value).__name__


@pytest.fixture(scope="module")
def docs_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with a driver that reports two GPUs. torch finds none of them, so runs train on the CPU."""
    root = tmp_path_factory.mktemp("docs")
    python_path = os.pathsep.join(filter(None, [str(NVML), os.environ.get("PYTHONPATH")]))
    server = Server(root, {"PYTHONPATH": python_path}).start()
    pairs = pairs_file(root / "pairs.jsonl", rows=10)
    lines = pairs.read_text().splitlines(keepends=True)
    # One of the five rows that a preview always examines has a finding, and further rows depend on its speed.
    pairs.write_text("".join([*lines[:4], lines[0], *lines[5:]]))
    _write_command(root / "bin" / "merlina", f'exec {sys.executable} -m merlina.cli.main "$@"')
    # A rejected request fails the example, unless it is marked `error`.
    _write_command(root / "bin" / "curl", f'PATH={os.environ["PATH"]} exec curl -sS --fail-with-body "$@"')
    yield server
    server.stop()
    server.end_workers()


@pytest.fixture
def reader(docs_server: Server, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Reader]:
    monkeypatch.chdir(docs_server.root)
    yield Reader(docs_server, tiny_model)
    with docs_server.client() as client:
        client.clear()


# Of the two pages that train, one runs always and the other only with --long.
_LONG = ("api",)


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, id=page.stem, marks=[pytest.mark.long] * (page.stem in _LONG)) for page in PAGES],
)
def test_a_page_can_be_followed_from_top_to_bottom(reader: Reader, page: Path) -> None:
    reader.follow(page)


def _write_command(path: Path, line: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{line}\n")
    path.chmod(0o755)
