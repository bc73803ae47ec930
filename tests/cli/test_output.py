"""Output of the commands: complete ids, escaped control characters, JSON in every case, and the progress bar."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.markup import escape
from rich.table import Table

from merlina.cli import console
from merlina.cli.config_file import read_mapping
from merlina.cli.console import SafeConsole, print_table
from merlina.cli.progress import show_progress
from merlina.errors import InvalidRequestError
from merlina.schemas.messages import JobMessage, MetricsMessage, StatusUpdate
from tests.cli import test_commands
from tests.harness import Server, acting_worker, pairs_file

pytestmark = pytest.mark.slow

LONG_NAME = "a-name-of-a-model-that-is-longer-than-any-column-of-a-narrow-terminal-would-be"


def command(*arguments: str, url: str = "http://127.0.0.1:9", **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "merlina.cli.main", *arguments],
        env={**os.environ, "MERLINA_URL": url, **environment}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("columns", [pytest.param("", marks=pytest.mark.long), "40"])
def test_ids_and_names_are_complete_in_pipes_and_narrow_terminals(
    server: Server, config: Callable[..., dict[str, Any]], tmp_path: Path, columns: str
) -> None:
    with acting_worker(server), server.client() as client:
        job_id = server.train(config(server, LONG_NAME))
        client.stop(job_id)
        dataset_id = client.upload(pairs_file(tmp_path / f"{LONG_NAME}.jsonl", 3)).dataset_id
    environment = {"COLUMNS": columns} if columns else {}
    jobs = command("jobs", url=server.url, **environment).stdout
    assert any(job_id in line and LONG_NAME in line for line in jobs.splitlines())
    datasets = command("datasets", "list", url=server.url, **environment).stdout
    assert any(dataset_id in line and f"{LONG_NAME}.jsonl" in line for line in datasets.splitlines())


def test_terminal_commands_of_others_are_printed_as_text(server: Server, tmp_path: Path) -> None:
    row = {"prompt": "red \x1b[31m \x9b2J", "chosen": "\u202eesrever", "rejected": "title \x1b]0;owned\x07"}
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(row))
    with server.client() as client:
        dataset_id = client.upload(file).dataset_id
    config = tmp_path / "run.json"
    dataset = {"source": {"source_type": "upload", "dataset_id": dataset_id}}
    config.write_text(json.dumps({"base_model": "m", "output_name": "o", "dataset": dataset}))
    shown = test_commands.command("preview", "--raw", str(config), url=server.url).stdout
    assert not {"\x1b", "\x9b", "\x07", "\u202e"} & set(shown)
    assert r"red \x1b[31m \x9b2J" in shown
    assert r"\u202eesrever" in shown


def test_own_styles_reach_a_terminal_and_those_in_texts_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    monkeypatch.setattr(console, "output", SafeConsole(file=shown, force_terminal=True, color_system="standard"))
    table = Table("name", box=None)
    name = "\x1b[5mblinks"
    table.add_row(f"[red]{escape(name)}[/]")
    print_table(table)
    assert "\x1b[31m" in shown.getvalue()
    assert r"\x1b[5mblinks" in shown.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("x.yaml", b"a: b: c", "is not valid YAML: a value with a second colon must be quoted at line 1, column 5"),
        ("x.yaml", b"a: 1\n\tb: 2", "is not valid YAML: indentation with a tab instead of spaces at line 2, column 1"),
        ("x.yaml", b"a: [1\n", "is not valid YAML: a list or mapping in brackets is not closed or lacks a comma "
         "at line 2, column 1"),
        ("x.yaml", b"a: \"x", "is not valid YAML: a quoted string is not closed at line 1, column 6"),
        ("x.yaml", b"a: 1\n\x01", "is not a text file: it contains a control character at line 2, column 1"),
        ("x.yaml", b"[" * 5000, "is nested too deeply"),
        ("x.yaml", b"a: " + b"9" * 5000, "contains a number with more than 4,300 digits"),
        ("x.yaml", b"a: 1\n---\nb: 2", "is not valid YAML: but found another document at line 2, column 1"),
        ("x.yaml", b"\xff\xfe\x00", "is not a text file in UTF-8"),
        ("x.json", b"\xff\xfe\x00", "is not a text file in UTF-8"),
        ("x.json", b"{a: 1}", "is not valid JSON: a name in double quotes was expected at line 1, column 2"),
        ("x.json", b"{}\n{}", "is not valid JSON: there is more text after the end of the value at line 2, column 1"),
    ],
)  # fmt: skip
def test_a_configuration_that_cannot_be_parsed_is_one_sentence_with_its_place(
    tmp_path: Path, name: str, content: bytes, problem: str
) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(InvalidRequestError) as raised:
        read_mapping(file)
    assert str(raised.value) == f"{file} {problem}"


@pytest.mark.parametrize("content", ['{"base_model": 3}', "no: [yaml", None])
def test_validate_prints_json_for_an_invalid_file(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "run.yaml"
    if content is not None:
        file.write_text(content)
    done = test_commands.command("validate", "--json", str(file))
    answer = json.loads(done.stdout)
    assert (done.returncode, done.stderr, answer["valid"]) == (1, "", False)
    assert answer["results"]["errors"]


def test_the_bar_of_a_narrow_terminal_has_time_left_and_speed() -> None:
    shown = io.StringIO()
    terminal = SafeConsole(file=shown, force_terminal=True, width=80, color_system=None)
    metrics = {"loss": 0.6931, "eval_loss": 0.7, "tokens_per_second": 1234.0}
    head: dict[str, Any] = {"job_id": "job_1", "timestamp": 0.0, "seq": 1}
    unknown = dict.fromkeys(("loss", "eval_loss", "learning_rate", "gpu_memory"))
    updates: list[JobMessage] = []
    for step in (1, 2, 3):
        state = {"status": "training", "progress": step / 1000, "current_step": step, "total_steps": 1000, **unknown}
        updates.append(StatusUpdate.model_validate({"type": "status_update", **head, **state}))
        updates.append(MetricsMessage(type="metrics", step=step, metrics=metrics, **head))
    show_progress(updates, terminal)
    last = shown.getvalue()
    assert "left" in last
    assert "1,234 tokens/s" in last
    assert "loss 0.6931" in last
