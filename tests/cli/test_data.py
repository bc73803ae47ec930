"""`merlina data`: the report on a data set of this machine or the Hub, without a server."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.test_commands import command
from tests.data_host import data_host
from tests.harness import pairs_file
from tests.hub import fake_hub

pytestmark = pytest.mark.slow

PAIR = {"prompt": "Name a river.", "chosen": "The Rhine.", "rejected": "A hill."}


def rows_file(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def report(*arguments: object) -> dict[str, Any]:
    done = command("data", *map(str, arguments), "--json")
    assert (done.returncode, done.stderr) == (0, "")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_all_rows_are_examined_and_one_pair_is_shown_as_it_is_trained_on(tmp_path: Path) -> None:
    rows = [{**PAIR, "prompt": f"Name river {number}."} for number in range(1200)]
    rows[0] = {"prompt": "Name a river.", "chosen": "The Rhine."}
    rows[700] = {**PAIR, "chosen": ""}
    rows[1100] = rows[1099]
    done = command("data", str(rows_file(tmp_path / "pairs.jsonl", rows)))
    assert (done.returncode, done.stderr) == (0, "")
    lines = [line.rstrip() for line in done.stdout.splitlines()]
    for expected in (
        "format           Standard columns (standard)",
        "rows             1,200 read, 1,198 usable, 2 skipped",
        "pairs            1,198",
        "mean characters  prompt 15, chosen 10, rejected 7",
        "· 1 of 1,200 rows lack a prompt or an answer and cannot be used: row 701: chosen is empty",
        "· 1 of 1,200 rows repeat an earlier one: each copy adds weight in training. dataset.drop_duplicates: true "
        "resolves it",
        "row 2 as it is trained on",
        "  prompt: <|im_start|>user",
        "Name river 1.<|im_end|>",
        "  chosen: The Rhine.<|im_end|>",
        "  rejected: A hill.<|im_end|>",
    ):
        assert expected in lines
    assert any(line.startswith("· 1 of 1,200 rows cannot be used: row 1: rejected is missing") for line in lines)
    assert "tokens" not in done.stdout


def test_a_model_counts_tokens_and_formats_by_its_own_template(tiny_model: Path, tmp_path: Path) -> None:
    rows = [{**PAIR, "prompt": "Name a river. " * (number + 1)} for number in range(20)]
    file = rows_file(tmp_path / "pairs.jsonl", rows)
    found = report(file, "--model", tiny_model, "--max-length", 100)
    lengths = found["token_lengths"]
    histogram = lengths["histogram"]
    assert sum(histogram["counts"]) == found["pairs"] == 20
    assert histogram["edges"][-1] > histogram["longest"] > lengths["percentile_95"] > histogram["median"]
    (finding,) = (finding for finding in found["findings"] if finding["kind"] == "over_max_length")
    assert (finding["count"], finding["option"]) == (lengths["over_max_length"], "drop_overlong")
    assert 0 < lengths["over_max_length"] < 20
    # Only the format tokenizer, the default with a model, states its form.
    assert found["example"]["form"] is not None
    assert found["mean_tokens"]["prompt"] <= 100
    shown = command("data", str(file), "--model", str(tiny_model), "--max-length", "100").stdout
    share = f"{lengths['over_max_length']} of 20 ({lengths['over_max_length'] / 20:.1%})"
    assert f"{share} are longer than max_length, 100" in shown
    assert "█" in shown
    assert f"  chosen ({found['example']['tokens']['chosen']['count']} tokens): The Rhine.<|im_end|>" in shown
    assert "form" not in report(file, "--model", tiny_model, "--format", "chatml")["example"]


def test_unpaired_answers_are_for_kto_and_their_labels_are_weighed(tmp_path: Path) -> None:
    rows = [{"prompt": f"Why {n}?", "completion": "So.", "label": n >= 5} for n in range(50)]
    file = rows_file(tmp_path / "thumbs.jsonl", rows)
    refused = command("data", str(file))
    assert refused.returncode == 1
    assert "--training-mode kto uses unpaired answers" in refused.stderr
    found = report(file, "--training-mode", "kto")
    assert found["detected_format"] == {"name": "unpaired", "title": "Unpaired answers with a label"}
    assert found["mean_characters"] == {"prompt": pytest.approx(6, abs=1), "chosen": 3, "rejected": 0}
    assert [finding["kind"] for finding in found["findings"]] == ["label_imbalance"]
    shown = command("data", str(file), "--training-mode", "kto").stdout
    assert "answers          50" in shown
    assert "  rejected: So.<|im_end|>" in shown


def test_columns_are_mapped_and_a_format_is_set(tmp_path: Path) -> None:
    rows = [{"asked": f"Why {n}?", "reply": "So.", "is_good": n % 2} for n in range(20)]
    mapping = [part for pair in ("asked=prompt", "reply=completion", "is_good=label") for part in ("--map", pair)]
    file = rows_file(tmp_path / "thumbs.jsonl", rows)
    assert report(file, "--training-mode", "kto", *mapping)["pairs"] == 20
    refused = command("data", str(file), "--training-mode", "kto", *mapping, "--row-format", "standard")
    assert refused.returncode == 1
    assert "rejected is missing" in refused.stderr or "chosen is missing" in refused.stderr


def test_template_arguments_need_the_format_that_passes_them_on(tiny_model: Path, tmp_path: Path) -> None:
    rows = [{**PAIR, "prompt": f"Why {number}?"} for number in range(2)]
    rows = [{**rows[0], "chat_template_kwargs": {}}, {**rows[1], "chat_template_kwargs": {"enable_thinking": False}}]
    file = rows_file(tmp_path / "pairs.jsonl", rows)
    (finding,) = report(file)["findings"]
    assert finding["message"].startswith("1 of 2 rows cannot be used: row 2: it has chat_template_kwargs, which the")
    assert report(file, "--model", tiny_model)["findings"] == []


def test_conversations_with_one_answer_are_for_sft(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]
    others = [[{**messages[0], "content": f"Why {number}?"}, messages[1]] for number in range(30)]
    file = rows_file(tmp_path / "chats.jsonl", [{"messages": chat} for chat in (messages, *others)])
    refused = command("data", str(file))
    assert refused.returncode == 1
    assert "--training-mode sft needs none" in refused.stderr
    found = report(file, "--training-mode", "sft")
    assert found["example"]["chosen"] == "Hello.<|im_end|>"
    assert found["findings"] == []


def test_the_encoding_is_reported_if_it_is_not_utf_8(tmp_path: Path) -> None:
    file = tmp_path / "paires.csv"
    file.write_text("prompt,chosen,rejected\nOù est le café ?,Là-bas,Non\n", encoding="cp1252")
    shown = command("data", str(file)).stdout
    assert "encoding         The file is read as cp1252: " in shown
    assert "Où est le café ?<|im_end|>" in shown
    assert report(pairs_file(tmp_path / "pairs.jsonl", rows=2))["notes"] == []


def test_a_file_at_an_address_is_examined_without_a_setting(tmp_path: Path) -> None:
    rows = pairs_file(tmp_path / "pairs.jsonl", rows=9)
    with data_host({"open/pairs.jsonl": rows.read_bytes()}) as host:
        address = f"{host.origin}/open/pairs.jsonl"
        assert report(address) == report(rows)
        missing = command("data", f"{host.origin}/open/none.jsonl")
        secret = command("data", f"{address}?X-Amz-Signature=s3cret")
    assert (missing.returncode, secret.returncode) == (1, 1)
    assert "There is no file at" in missing.stderr
    assert "FILE: has a query string or a fragment" in secret.stderr
    assert "s3cret" not in secret.stderr


def test_at_most_max_samples_rows_are_read(tmp_path: Path) -> None:
    assert report(pairs_file(tmp_path / "pairs.jsonl", rows=9), "--max-samples", 5)["rows"] == 5


def test_columns_that_appear_in_later_rows_are_reported(tmp_path: Path) -> None:
    rows = ({**PAIR, "prompt": f"Why {number}?"} for number in range(40))
    later = {**PAIR, "prompt": "Why 40?", "critique": "Both are too short."}
    findings = report(rows_file(tmp_path / "pairs.jsonl", (*rows, later)))["findings"]
    messages = {finding["kind"]: finding["message"] for finding in findings}
    assert messages["unused_columns"] == "there are columns of text that are not used: critique"


def test_messages_name_the_options_of_the_command(tmp_path: Path) -> None:
    row = {"question": "Why?", "winner": "So.", "loser": "No."}
    file = rows_file(tmp_path / "rows.jsonl", [row])
    refused = command("data", str(file)).stderr
    assert "prompt is missing" in refused or "chosen is missing" in refused
    assert "--map 'winner=chosen' would map it" in refused
    done = command("data", str(file), "--map", "question=prompt", "--map", "winner=chosen", "--map", "nothing=rejected")
    assert "--map names 'nothing'; the columns are question, winner, loser" in done.stderr
    found = report(rows_file(tmp_path / "mixed.jsonl", [PAIR, {"prompt": "Why?", "chosen": "So."}]))["findings"]
    (unusable,) = [finding["message"] for finding in found if finding["kind"] == "unusable"]
    assert unusable.endswith("--map can map another column to it. --training-mode sft does not need it")


def test_terminal_commands_in_rows_are_printed_as_text(tmp_path: Path) -> None:
    row = {"prompt": "red \x1b[31m \x9b2J", "chosen": "\u202eesrever", "rejected": "title \x1b]0;owned\x07"}
    file = rows_file(tmp_path / "rows.jsonl", [row, {"prompt": "x", "chos\x1b[31men": "y"}])
    shown, as_json = (command("data", str(file), *options).stdout for options in ((), ("--json",)))
    assert not {"\x1b", "\x9b", "\x07", "\u202e"} & set(shown + as_json)
    assert r"red \x1b[31m \x9b2J" in shown
    assert json.loads(as_json)["example"]["chosen"] == "\u202eesrever<|im_end|>"


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("none.jsonl", None, "'{file}' cannot be read: No such file or directory"),
        ("empty.jsonl", "", "The data set has no rows"),
        ("broken.jsonl", '{"prompt": oops}', "line 1 is not valid JSON: a value was expected at column 12"),
        ("rows.jsonl", '{"a": 1}', "None of the data set's 1 rows can be used: row 1: "),
        ("notes.txt", "Dear diary", "notes.txt: unknown file format; supported are json, jsonl, csv, tsv and parquet"),
    ],
)
def test_a_file_without_usable_rows_is_one_sentence(
    tmp_path: Path, name: str, content: str | None, problem: str
) -> None:
    file = tmp_path / name
    if content is not None:
        file.write_text(content)
    for options in ((), ("--json",)):
        done = command("data", str(file), *options)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith(problem.format(file=file))
        assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--format", "tokenizer"], "--model must name"),
        (["--format", "custom"], "--format custom has no templates here"),
        (["--max-length", "100"], "which --model is needed to count"),
        (["--model", "/nowhere"], "'/nowhere'"),
        (["--map", "reply"], "--map 'reply' should have the form COLUMN=NAME"),
        (["--map", "reply=answer"], "--map reply: should be 'prompt', 'chosen',"),
        (["--map", "reply=chosen"], "--map names 'reply'; the columns are prompt, chosen, rejected"),
    ],
)
def test_options_that_have_no_effect_or_no_model_are_refused(tmp_path: Path, options: list[str], problem: str) -> None:
    done = command("data", str(pairs_file(tmp_path / "pairs.jsonl", rows=2)), *options)
    assert (done.returncode, done.stdout) == (1, "")
    assert problem in done.stderr


def test_what_is_not_a_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, problem in ((".", "is a folder"), ("pipe", "is not a regular file"), ("x" * 300, "File name too long")):
        done = command("data", f"{tmp_path}/{name}")
        assert (done.returncode, done.stdout) == (1, "")
        assert problem in done.stderr


def test_a_file_is_read_with_its_encoding_and_format(tmp_path: Path) -> None:
    file = tmp_path / "paires.txt"
    file.write_bytes("prompt,chosen,rejected\nOù est le café ?,Là-bas,Non\n".encode("latin-1"))
    found = report(file, "--file-format", "csv", "--encoding", "latin-1")
    assert found["notes"] == []
    assert "Où est le café ?" in found["example"]["prompt"]
    refused = command("data", str(file), "--file-format", "csv", "--encoding", "utf-16")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "line 1 is not UTF-16" in refused.stderr


def data_on_hub(folder: Path, endpoint: str, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "merlina.cli.main", "data", "org/pairs", "--json", *options],
        env={**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(folder), "HF_HUB_OFFLINE": "0"},
        cwd=folder, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def hub_rows(count: int) -> bytes:
    return "".join(json.dumps({**PAIR, "prompt": f"Why {number}?"}) + "\n" for number in range(count)).encode()


def test_a_data_set_of_the_hub_is_read_by_its_id(tmp_path: Path) -> None:
    with fake_hub({"datasets/org/pairs": {"train.jsonl": hub_rows(3)}}) as hub:
        done = data_on_hub(tmp_path, hub.endpoint)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["pairs"] == 3


def test_a_part_of_a_data_set_of_the_hub_is_named_by_options(tmp_path: Path) -> None:
    large, small = (
        f"- {{config_name: {name}, data_files: [{{split: test, path: {path}}}]}}\n"
        for name, path in (("large", "extra/b.jsonl"), ("small", "test.jsonl"))
    )
    card = f"---\nconfigs:\n{large}{small}---\n".encode()
    files = {"README.md": card, "test.jsonl": hub_rows(2), "extra/a.jsonl": hub_rows(4), "extra/b.jsonl": hub_rows(5)}
    newer = {"datasets/org/pairs": {**files, "test.jsonl": hub_rows(7)}}
    with fake_hub({"datasets/org/pairs": files}) as hub:
        hub.revisions["next"] = newer
        counts = {
            options: json.loads(done.stdout)["pairs"] if done.returncode == 0 else done.stderr
            for options in (
                "--config-name small --split test --revision next",
                "--data-files extra/*.jsonl --data-files test.jsonl",
                "--config-name small --split validation",
            )
            for done in [data_on_hub(tmp_path, hub.endpoint, *options.split())]
        }
    *found, refused = counts.values()
    assert found == [7, 11]
    assert "has no split 'validation'; set --split to test" in refused


def test_options_of_the_other_kind_of_source_are_refused(tmp_path: Path) -> None:
    file = str(pairs_file(tmp_path / "pairs.jsonl", rows=2))
    for rows, option, value, problem in (
        (file, "--split", "test", f"--split is for data sets on the Hub, and '{file}' is a file"),
        (file, "--config-name", "x", "--config-name is for data sets on the Hub"),
        (file, "--revision", "main", "--revision is for data sets on the Hub"),
        (file, "--data-files", "*.jsonl", "--data-files is for data sets on the Hub"),
        ("org/pairs", "--encoding", "latin-1", "--encoding is for files, and 'org/pairs' is a data set on the Hub"),
        ("org/pairs", "--file-format", "csv", "--file-format is for files"),
    ):
        done = command("data", rows, option, value)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith(problem)
    done = command("data", "org/pairs", "--revision", "../main")
    assert "--revision: '../main' is not a revision" in done.stderr


def test_a_terminal_shows_the_number_of_rows_and_keeps_it_out_of_the_results(tmp_path: Path) -> None:
    file = rows_file(tmp_path / "pairs.jsonl", ({**PAIR, "prompt": f"Why {number}?"} for number in range(30_000)))
    terminal, errors = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "merlina.cli.main", "data", str(file), "--json"],
        env={**os.environ, "TERM": "xterm"}, stdout=subprocess.PIPE, stderr=errors,
    )  # fmt: skip
    os.close(errors)
    shown = _read_all(terminal)
    results, _ = process.communicate(timeout=60)
    assert json.loads(results)["rows"] == 30_000
    numbers = [int(part.split()[-1].replace(b",", b"")) for part in shown.split(b" rows read")[:-1]]
    assert 0 < max(numbers) <= 30_000


def _read_all(terminal: int) -> bytes:
    """Return what a process writes until it closes the terminal."""
    shown = b""
    while True:
        try:
            chunk = os.read(terminal, 1 << 16)
        except OSError:  # Linux reports that the other end is closed as an error.
            chunk = b""
        if not chunk:
            os.close(terminal)
            return shown
        shown += chunk
