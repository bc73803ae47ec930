from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from merlina.cli.config_file import _Loader, read_config_file
from merlina.cli.main import app
from merlina.errors import InvalidRequestError, NotFoundError
from tests.harness import Server, damaged_model, pairs_file, training_config, until

pytestmark = pytest.mark.slow

Config = Callable[..., dict[str, Any]]
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Done:
    """A command's exit code and output."""

    returncode: int
    stdout: str
    stderr: str


def command(*arguments: str, url: str = "http://127.0.0.1:9") -> Done:
    """Run the command's entry point in this process, which saves a second of imports each time."""
    stdout, stderr, code = io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(stdout), redirect_stderr(stderr):
        patch.setenv("MERLINA_URL", url)
        patch.setattr(sys, "argv", ["merlina", *arguments])
        try:
            app()
        except SystemExit as end:
            code = int(end.code or 0)
    return Done(code, stdout.getvalue(), stderr.getvalue())


def command_in_own_process(*arguments: str, url: str = "http://127.0.0.1:9") -> Done:
    done = subprocess.run(
        [sys.executable, "-m", "merlina.cli.main", *arguments],
        env={**os.environ, "MERLINA_URL": url}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    return Done(done.returncode, done.stdout, done.stderr)


@given(number=st.floats(1e-12, 1e12))
def test_numbers_in_yaml_may_have_any_notation(number: float) -> None:
    for text in (repr(number), f"{number:e}", f"{number:.0e}"):
        assert yaml.load(f"rate: {text}", _Loader) == {"rate": float(text)}


def test_bench_takes_first_steps_without_a_server_and_keeps_nothing(tiny_model: Path, tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    body = training_config(tiny_model, pairs_file(tmp_path / "pairs.jsonl"), "benched", num_epochs=100)
    file.write_text(json.dumps(body))
    done = command_in_own_process("bench", str(file), "--steps", "2", "--json")
    assert done.returncode == 0, done.stderr
    measured = json.loads(done.stdout)
    assert measured["total_steps"] == 900
    assert measured["hours"] == pytest.approx(900 * measured["seconds_per_step"] / 3600)
    assert min(measured[name] for name in ("seconds_to_first_step", "tokens_per_second", "memory_gib")) > 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pairs.jsonl", "run.json"]


def test_an_invalid_id_is_named() -> None:
    done = command("datasets", "columns", "nope")
    assert done.returncode == 1
    assert "'nope' is not a valid data set id" in done.stderr


def test_the_examples_are_valid_configurations() -> None:
    for file in (ROOT / "examples").glob("*.yaml"):
        assert read_config_file(file).training_mode == "orpo"


def test_an_invalid_configuration_file_is_explained(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("base_model: m\noutput_name: o\nlerning_rate: 5e-6\n")
    with pytest.raises(InvalidRequestError) as caught:
        read_config_file(file)
    assert caught.value.errors == (
        "dataset: required, but missing",
        "lerning_rate: unknown field; did you mean learning_rate?",
    )
    file.write_text("base_model: m\noutput_name: o/p\ndataset: {source: {source_type: huggingface, repo_id: o/d}}\n")
    with pytest.raises(InvalidRequestError) as caught:
        read_config_file(file)
    assert caught.value.errors == ("output_name: 'o/p' has a '/', which requires push_to_hub",)
    file.write_text("just text")
    with pytest.raises(InvalidRequestError, match="one mapping with the fields"):
        read_config_file(file)
    with pytest.raises(NotFoundError, match="No such file"):
        read_config_file(tmp_path / "none.yaml")


def test_errors_are_lines_and_exit_with_1(tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    file.write_text('{"base_model": 3}')
    done = command_in_own_process("train", str(file))
    assert (done.returncode, done.stdout) == (1, "")
    assert "base_model: should be a valid string, not 3" in done.stderr
    assert "Traceback" not in done.stderr
    away = command("jobs")
    assert away.returncode == 1
    assert "`merlina serve` starts one" in away.stderr


def test_invalid_settings_are_named() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "merlina.cli.main", "serve"],
        env={**os.environ, "PORT": "99999", "LOG_LEVEL": "loud"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "PORT: should be less than or equal to 65535" in done.stderr
    assert "LOG_LEVEL: should be 'DEBUG'" in done.stderr


@pytest.mark.parametrize(
    ("setting", "value", "complaint"),
    [
        ("DATA_DIR", "/etc/passwd/x", "cannot be used: Not a directory"),
        pytest.param(
            "DATABASE_URL", "nonsense", "The database of DATABASE_URL cannot be opened", marks=pytest.mark.long
        ),
        pytest.param("DOMAIN", "https://[bad", "DOMAIN: is not a valid address", marks=pytest.mark.long),
        ("API_KEY", "schlüssel", "API_KEY: must be printable ASCII"),
    ],
)
def test_an_invalid_setting_is_one_line(tmp_path: Path, setting: str, value: str, complaint: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "merlina", "serve", "--port", "0"],
        env={**os.environ, "DATA_DIR": str(tmp_path / "data"), "MODELS_DIR": str(tmp_path / "models"), setting: value},
        cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert complaint in done.stderr
    assert "Traceback" not in done.stderr


def test_train_shows_the_run_and_exits_as_it_ended(
    server: Server, config: Config, tiny_model: Path, tmp_path: Path
) -> None:
    file = tmp_path / "run.json"
    file.write_text(json.dumps(config(server, "by_command", max_steps=5)))
    done = command_in_own_process("train", str(file), url=server.url)
    assert done.returncode == 0, done.stderr
    for expected in ("Training spell cast!", "40 rows read", "step 5/5", "completed: the model is in"):
        assert expected in done.stdout
    damaged = damaged_model(tiny_model, tmp_path / "damaged")
    file.write_text(json.dumps(config(server, "by_command", base_model=str(damaged))))
    failed = command("train", str(file), url=server.url)
    assert failed.returncode == 1
    assert "damaged" in failed.stdout


def test_ctrl_c_leaves_the_run_going_and_a_stop_ends_it(server: Server, config: Config, tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    file.write_text(json.dumps(config(server, "left", max_steps=2000, num_epochs=1000)))
    watching = subprocess.Popen(
        [sys.executable, "-m", "merlina.cli.main", "train", str(file), "--url", server.url],
        stdout=subprocess.PIPE, text=True, preexec_fn=_hear_ctrl_c,
    )  # fmt: skip
    with server.client() as client:
        job_id = until(lambda: next((i for i, job in client.jobs().items() if job.status == "training"), None))
    watching.send_signal(signal.SIGINT)
    output, _ = watching.communicate(timeout=20)
    assert watching.returncode == 130
    assert f"merlina watch {job_id}" in output
    assert f"merlina stop {job_id}" in output
    assert json.loads(command("status", job_id, "--json", url=server.url).stdout)["status"] == "training"
    assert "Stop request sent" in command("stop", job_id, url=server.url).stdout
    watched = command("watch", job_id, url=server.url)
    assert watched.returncode == 3
    assert "stopped; the model is in" in watched.stdout
    listed = json.loads(command("jobs", "--json", "--status", "stopped", url=server.url).stdout)
    assert job_id in [job["job_id"] for job in listed["jobs"]]
    assert job_id in command("jobs", url=server.url).stdout
    assert "The model is in" in command("logs", job_id, url=server.url).stdout


def _hear_ctrl_c() -> None:
    # A test runner in the background may have been started to ignore it, and children inherit that.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_a_configuration_is_checked_and_its_data_shown(server: Server, config: Config, tmp_path: Path) -> None:
    body = config(server, "checked")
    file = tmp_path / "run.json"
    file.write_text(json.dumps(body))
    valid = command("validate", str(file), url=server.url)
    assert (valid.returncode, valid.stderr) == (0, "")
    for expected in ("valid: the run can start", "expected, at least", "libraries", " steps, ", "trains on the CPU"):
        assert expected in valid.stdout
    shown = command("preview", str(file), url=server.url)
    assert "1\n  prompt (23 tokens): <|im_start|>user\nWhat is 0 plus 0?<|im_end|>" in shown.stdout
    assert "detected: Standard columns" in shown.stdout
    raw = json.loads(command("preview", str(file), "--raw", "--json", url=server.url).stdout)
    assert raw["samples"][0]["prompt"] == "What is 0 plus 0?"
    file.write_text(json.dumps({**body, "gpu_ids": [3]}))
    refused = command("validate", str(file), "--json", url=server.url)
    assert refused.returncode == 1
    assert "there is no GPU with the index 3" in json.loads(refused.stdout)["results"]["errors"][0]


@pytest.mark.parametrize("place", ["run", "dataset"])
def test_rows_without_rejected_answers_are_shown_for_sft(
    server: Server, config: Config, tmp_path: Path, place: str
) -> None:
    rows = tmp_path / "demonstrations.jsonl"
    rows.write_text('{"prompt": "What is 1 plus 1?", "chosen": "It is 2."}\n' * 3)
    with server.client() as client:
        source = {"source_type": "upload", "dataset_id": client.upload(rows).dataset_id}
    body = config(server, "demonstrations", dataset={"source": source})
    (body if place == "run" else body["dataset"])["training_mode"] = "sft"
    file = tmp_path / "run.json"
    file.write_text(json.dumps(body))
    shown = json.loads(command("preview", str(file), "--json", url=server.url).stdout)
    assert shown["warnings"] == []
    assert "It is 2." in shown["samples"][0]["chosen"]
    assert "rejected" not in command("preview", str(file), url=server.url).stdout


def test_data_sets_configurations_and_gpus_by_command(server: Server, tmp_path: Path) -> None:
    file = pairs_file(tmp_path / "mine.jsonl", rows=12)
    dataset_id = json.loads(command("datasets", "upload", str(file), "--json", url=server.url).stdout)["dataset_id"]
    assert "mine.jsonl" in command("datasets", "list", url=server.url).stdout
    columns = command("datasets", "columns", dataset_id, url=server.url).stdout
    assert "detected: Standard columns\n12 rows" in columns
    assert "deleted successfully" in command("datasets", "delete", dataset_id, url=server.url).stdout
    assert command("datasets", "delete", dataset_id, url=server.url).returncode == 1
    part = tmp_path / "part.yaml"
    part.write_text("lora_r: 8\nlearning_rate: 5e-6\n")
    saved = command("configs", "save", "by-command", str(part), "--tag", "cli", url=server.url)
    assert "saved successfully" in saved.stdout, saved.stderr
    listed = json.loads(command("configs", "list", "--tag", "cli", "--json", url=server.url).stdout)
    assert [entry["name"] for entry in listed["configs"]] == ["by-command"]
    assert json.loads(command("configs", "show", "by-command", url=server.url).stdout) == {
        "lora_r": 8, "learning_rate": 5e-6,
    }  # fmt: skip
    target = str(server.root / "by-command.json")
    assert "exported" in command("configs", "export", "by-command", target, url=server.url).stdout
    assert "imported" in command("configs", "import", target, "--name", "back", url=server.url).stdout
    assert "deleted" in command("configs", "delete", "back", url=server.url).stdout
    assert "runs train on the CPU" in command("gpus", url=server.url).stdout


def test_help_is_there_for_every_command() -> None:
    shown = command("--help").stdout
    for name in (
        "serve", "validate", "preview", "data", "train", "watch", "resume", "status", "jobs", "logs", "stop", "gpus",
        "datasets", "configs", "demo",
    ):  # fmt: skip
        assert f" {name} " in shown
    assert command("--version").stdout.startswith("merlina ")
