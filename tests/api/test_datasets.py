from __future__ import annotations

import csv
import gzip
import json
import re
import shutil
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from merlina.errors import OverridableError
from merlina.storage import jobs
from merlina.storage.database import Database
from tests.harness import Server, pairs_file, training_config

CHATML = "<|im_start|>user\nWhat is 0 plus 0?<|im_end|>\n<|im_start|>assistant\n"


def upload(server: Server, name: str, content: bytes) -> httpx.Response:
    with server.http() as http:
        return http.post("/dataset/upload-file", files={"file": (name, content)})


def source(dataset_id: str, **fields: Any) -> dict[str, Any]:
    return {"source": {"source_type": "upload", "dataset_id": dataset_id}, **fields}


@pytest.fixture(scope="module")
def uploaded(server: Server, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    content = pairs_file(tmp_path_factory.mktemp("upload") / "pairs.jsonl").read_bytes()
    response = upload(server, "my pairs.jsonl", content)
    assert response.status_code == 200, response.text
    return response.json()


def test_an_upload_is_stored_and_listed(server: Server, uploaded: dict[str, Any]) -> None:
    assert re.fullmatch(r"upload_\d{8}_\d{6}_[0-9a-f]{8}", uploaded["dataset_id"])
    assert (uploaded["status"], uploaded["filename"], uploaded["total_rows"]) == ("success", "my pairs.jsonl", 40)
    with server.http() as http:
        listed = http.get("/dataset/uploads").json()["datasets"]
    entry = next(entry for entry in listed if entry["dataset_id"] == uploaded["dataset_id"])
    assert (entry["filename"], entry["size"]) == (uploaded["filename"], uploaded["size"])


def test_a_preview_shows_no_more_rows_than_max_samples(server: Server, uploaded: dict[str, Any]) -> None:
    with server.http() as http:
        for endpoint in ("preview", "preview-formatted", "columns"):
            response = http.post(f"/dataset/{endpoint}", json=source(uploaded["dataset_id"], max_samples=3)).json()
            assert (len(response["samples"]), response["total_rows"]) == (3, 40), endpoint


def test_a_preview_for_sft_needs_no_rejected_answers(server: Server) -> None:
    row = {"prompt": "What is 1 plus 1?", "chosen": "2"}
    dataset_id = upload(server, "one.json", json.dumps(row).encode()).json()["dataset_id"]
    with server.http() as http:
        preview = http.post("/dataset/preview-formatted", json=source(dataset_id, training_mode="sft")).json()
        compared = http.post("/dataset/preview-formatted", json=source(dataset_id)).json()
    assert (preview["samples"][0]["chosen"], preview["warnings"]) == ("2<|im_end|>", [])
    assert (compared["samples"], len(compared["warnings"])) == ([], 1)


def test_a_preview_shows_ten_rows_as_they_are_and_five_as_they_are_trained_on(
    server: Server, uploaded: dict[str, Any]
) -> None:
    with server.http() as http:
        raw = http.post("/dataset/preview", json=source(uploaded["dataset_id"])).json()
        assert (raw["num_samples"], len(raw["samples"]), raw["total_rows"]) == (10, 10, 40)
        assert set(raw["samples"][0]) == {"prompt", "chosen", "rejected"}
        formatted = http.post("/dataset/preview-formatted", json=source(uploaded["dataset_id"])).json()
        assert formatted["num_samples"] == 5
        assert formatted["samples"][0] == {
            "prompt": CHATML,
            "chosen": "It is 0. The runes agree.<|im_end|>",
            "rejected": "I can't really say what 0 and 0 may add up to.<|im_end|>",
            "row": 1,
        }


def test_a_formatted_sample_has_its_row_number(server: Server, tiny_model: Path) -> None:
    rows = [{"prompt": f"Why {n}?", "chosen": "" if n % 2 else "So.", "rejected": "No."} for n in range(9)]
    body = {"source": {"source_type": "local_file", "file_path": str(write_rows(server.root / "gaps.jsonl", rows))}}
    with server.http() as http:
        for model_name in (None, str(tiny_model)):
            shown = http.post("/dataset/preview-formatted", json={**body, "model_name": model_name}).json()
            assert [sample["row"] for sample in shown["samples"]] == [1, 3, 5, 7, 9]
            assert all(f"Why {sample['row'] - 1}?" in sample["prompt"] for sample in shown["samples"])
            assert [warning.split(" cannot")[0] for warning in shown["warnings"]] == [
                "row 2",
                "row 4",
                "row 6",
                "row 8",
            ]


def test_a_models_own_template_is_previewed_through_the_helper(
    server: Server, uploaded: dict[str, Any], tiny_model: Path
) -> None:
    spec = source(uploaded["dataset_id"], format={"format_type": "tokenizer"})
    with server.http() as http:
        without = http.post("/dataset/preview-formatted", json=spec)
        assert without.status_code == 400
        assert "model_name is required" in without.json()["detail"]
        shown = http.post("/dataset/preview-formatted", json={**spec, "model_name": str(tiny_model)}).json()
    assert shown["samples"][0]["prompt"] == CHATML
    assert shown["samples"][0]["chosen"] == "It is 0. The runes agree.<|im_end|>"


def test_a_model_folder_that_changes_is_read_again(
    server: Server, uploaded: dict[str, Any], tiny_model: Path, tmp_path: Path
) -> None:
    model = Path(shutil.copytree(tiny_model, server.root / "changing"))
    spec = {**source(uploaded["dataset_id"], format={"format_type": "tokenizer"}), "model_name": str(model)}
    run = {**training_config(model, server.root / "pairs.jsonl", "changing"), "dataset": {**spec, "test_size": 0.1}}
    template = model / "chat_template.jinja"
    with server.http() as http:
        assert http.post("/dataset/preview-formatted", json=spec).json()["samples"][0]["prompt"] == CHATML
        small = http.post("/validate", json=run).json()["results"]["memory"]["needed_mb"]
        template.write_text(template.read_text().replace("<|im_start|>", "[X]"))
        changed = http.post("/dataset/preview-formatted", json=spec).json()["samples"][0]["prompt"]
        assert changed == CHATML.replace("<|im_start|>", "[X]")
        settings = json.loads((model / "config.json").read_text())
        wider = {"hidden_size": 2048, "intermediate_size": 8192, "num_attention_heads": 16, "num_hidden_layers": 24}
        (model / "config.json").write_text(json.dumps({**settings, **wider}))
        assert http.post("/validate", json=run).json()["results"]["memory"]["needed_mb"] > 2 * small
        template.write_text("{{ raise_exception('changed') }}")
        refused = http.post("/validate", json=run).json()
    assert "changed" in json.dumps(refused["results"])
    assert not refused["valid"]


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("x.jsonl", b'{"a": 1}\n{broken\n', "line 2 is not valid JSON"),
        ("x.jsonl", b"", "no rows"),
        ("x.csv", b"a,b\n1,2,3\n", "line 2 has more cells"),
        ("x.parquet", b"PAR1 but no more", "not readable as Parquet"),
        ("x.txt.gz", b"\x1f\x8b", "unknown file format"),
        ("x.jsonl.gz", gzip.compress(b'{"a": 1}\n', mtime=0)[:-9], "gzip file ends too early"),
        ("x.jsonl.zst", b"\x28\xb5\x2f\xfd", "zstd file ends too early"),
        ("x.csv", "a,b\n1,ÿ\n".encode("cp1252"), "line 2 is not UTF-8 text"),
    ],
)
def test_an_unreadable_file_is_refused_and_leaves_nothing(
    server: Server, name: str, content: bytes, complaint: str
) -> None:
    folder = server.root / "data" / "uploads"
    before = sorted(folder.iterdir())
    response = upload(server, name, content)
    assert response.status_code == 400
    assert complaint in response.json()["detail"]
    assert sorted(folder.iterdir()) == before


def test_an_invalid_upload_body_is_explained(server: Server) -> None:
    with server.http() as http:
        for options in ({"json": {}}, {"files": {"other": b"x"}}, {"data": {"file": "x"}}):
            response = http.post("/dataset/upload-file", **options)
            assert response.status_code == 400, options
            assert "a part named 'file'" in response.json()["detail"]


def test_a_path_in_a_file_name_is_ignored(server: Server) -> None:
    response = upload(server, "../../../etc/evil.jsonl", b'{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    assert response.json()["filename"] == "evil.jsonl"


def test_a_file_over_the_limit_is_413_and_leaves_nothing(new_server: Any) -> None:
    server = new_server(MAX_UPLOAD_SIZE_MB="1")
    row = json.dumps({"prompt": "a" * 1000, "chosen": "b", "rejected": "c"}).encode() + b"\n"
    assert upload(server, "small.jsonl", row * 900).status_code == 200
    response = upload(server, "large.jsonl", row * 1100)
    assert response.status_code == 413
    assert "larger than 1 MiB" in response.json()["detail"]
    assert len(list((server.root / "data" / "uploads").iterdir())) == 1


def test_an_upload_can_be_trained_on_and_is_kept_while_it_is_needed(server: Server, tiny_model: Path) -> None:
    content = (
        b'{"question": "Why?", "good": "So.", "bad": "No."}\n' * 8 + b'{"question": "", "good": "x", "bad": "y"}\n'
    )
    dataset_id = upload(server, "mapped.jsonl", content).json()["dataset_id"]
    mapping = {"question": "prompt", "good": "chosen", "bad": "rejected"}
    body = training_config(tiny_model, Path(), "mapped", max_steps=2)
    body["dataset"] = source(dataset_id, column_mapping=mapping, test_size=0)
    with server.http() as http:
        validation = http.post("/validate", json=body).json()
        assert validation["valid"]
        warnings = " ".join(validation["results"]["warnings"])
        assert "1 of 9 rows lack a prompt or an answer and cannot be used: row 9: prompt is empty" in warnings
        assert "7 of 9 rows repeat an earlier one" in warnings
        job_id = http.post("/train", json=body).json()["job_id"]
        needed = http.delete(f"/dataset/uploads/{dataset_id}")
        assert needed.status_code == 409
        assert job_id in needed.json()["detail"]["message"]
        assert server.until_ended(job_id).status == "completed"
        log = [line["message"] for line in http.get(f"/jobs/{job_id}/logs").json()["logs"]]
        assert "1 of 9 rows lack a prompt or an answer and cannot be used: row 9: prompt is empty" in log
        assert http.delete(f"/dataset/uploads/{dataset_id}").status_code == 200
        assert http.delete(f"/dataset/uploads/{dataset_id}").status_code == 404
        assert http.post("/dataset/preview", json=source(dataset_id)).status_code == 404


def test_a_compressed_upload_in_another_encoding_is_read_alike_by_all(server: Server, tiny_model: Path) -> None:
    lines = ["prompt;chosen;rejected", *(f"Où est {n}?;Là, à côté;Non" for n in range(9))]
    content = gzip.compress("\r\n".join(lines).encode("cp1252"))
    accepted = upload(server, "paires.csv.gz", content).json()
    assert (accepted["file_format"], accepted["total_rows"], accepted["size"]) == ("csv", 9, len(content))
    note = (
        "The file is read as cp1252: 9 of its first 10 lines contain characters that are not UTF-8. "
        "Set the source's encoding if that is wrong"
    )
    dataset = source(accepted["dataset_id"], test_size=0)
    body = {**training_config(tiny_model, Path(), "french", max_steps=2), "dataset": dataset}
    with server.http() as http:
        for path in ("preview", "preview-formatted", "columns"):
            shown = http.post(f"/dataset/{path}", json=dataset).json()
            assert (shown["warnings"], shown["total_rows"]) == ([note], 9), path
            assert "Où est 0?" in shown["samples"][0]["prompt"]
        results = http.post("/validate", json=body).json()["results"]
        assert f"dataset: {note}" in results["warnings"]
        given = {**dataset, "source": {**dataset["source"], "encoding": "latin-1"}}
        assert http.post("/dataset/columns", json=given).json()["warnings"] == []
    ended = server.until_ended(server.train(body))
    assert ended.status == "completed"
    assert note in server.log_lines(ended.job_id)


def test_a_path_outside_the_allowed_folders_is_403(server: Server) -> None:
    body = {"source": {"source_type": "local_file", "file_path": "/etc/passwd", "file_format": "csv"}}
    with server.http() as http:
        for path in ("/dataset/preview", "/dataset/preview-formatted"):
            assert http.post(path, json=body).status_code == 403


@pytest.mark.parametrize("name", ["x.jsonl", "x.csv", "x.json", "x.parquet"])
def test_columns_have_samples_a_row_count_and_a_suggested_mapping(server: Server, name: str) -> None:
    rows = [{"Question": f"Why {n}?", "accepted": "So.", "rejected": "No.", "note": "x"} for n in range(37)]
    file = write_rows(server.root / name, rows)
    body = {"source": {"source_type": "local_file", "file_path": str(file)}}
    with server.http() as http:
        response = http.post("/dataset/columns", json=body).json()
    assert set(response) == {
        "status", "columns", "samples", "total_rows", "suggested_mapping", "detected_format", "warnings"
    }  # fmt: skip
    assert response["columns"] == ["Question", "accepted", "rejected", "note"]
    assert response["samples"] == rows[:10]
    assert response["total_rows"] == 37
    assert response["suggested_mapping"] == {"Question": "prompt", "accepted": "chosen"}
    assert response["detected_format"] is None


def test_the_count_follows_a_file_that_changes(server: Server) -> None:
    file = write_rows(server.root / "grows.jsonl", [{"a": 1}] * 3)
    body = {"source": {"source_type": "local_file", "file_path": str(file)}}
    with server.http() as http:
        assert http.post("/dataset/columns", json=body).json()["total_rows"] == 3
        write_rows(file, [{"a": 1}] * 5)
        assert http.post("/dataset/columns", json=body).json()["total_rows"] == 5


def test_the_detected_format_is_part_of_previews_and_columns_and_needs_no_mapping(server: Server) -> None:
    row = {
        "instruction": "Translate.",
        "input": "The cat.",
        "output": ["Le chat.", "El gato."],
        "notes": "Checked by me.",
    }
    file = write_rows(server.root / "alpaca.jsonl", [row] * 3)
    body = {"source": {"source_type": "local_file", "file_path": str(file)}}
    with server.http() as http:
        for path in ("preview", "preview-formatted", "columns"):
            response = http.post(f"/dataset/{path}", json=body).json()
            assert response["detected_format"] == {"name": "alpaca", "title": "Alpaca"}
        assert response["suggested_mapping"] == {}
        formatted = http.post("/dataset/preview-formatted", json=body).json()
        refused = http.post("/dataset/preview-formatted", json={**body, "row_format": "nectar"}).json()
    assert "Translate.\nThe cat.<|im_end|>" in formatted["samples"][0]["prompt"]
    assert {finding["kind"]: finding["count"] for finding in formatted["findings"]}["unused_columns"] == 3
    assert (refused["detected_format"]["name"], refused["samples"]) == ("alpaca", [])
    assert refused["warnings"][0].startswith("row 1 cannot be used: answers is missing")


def test_a_preview_with_a_model_shows_the_tokens_that_are_trained_on(
    server: Server, uploaded: dict[str, Any], tiny_model: Path
) -> None:
    spec = source(uploaded["dataset_id"], model_name=str(tiny_model))
    lengths = {"max_length": 40, "max_prompt_length": 16}
    with server.http() as http:
        shown = http.post("/dataset/preview-formatted", json=spec, params=lengths).json()
        wrong = http.post("/dataset/preview-formatted", json=spec, params={"max_length": 64, "max_prompt_length": 1024})
    first = shown["samples"][0]
    tokens = first["tokens"]
    assert [len(tokens[part]["ids"]) for part in ("prompt", "chosen", "rejected")] == [16, 21, 24]
    assert first["cut"] == {"prompt": 7, "chosen": 0, "rejected": 11}
    assert tokens["chosen"]["pieces"][-1] == "<|im_end|>"
    assert tokens["chosen"]["special"] == [20]
    assert "".join(tokens["chosen"]["pieces"]) == first["chosen"]
    (finding,) = [finding for finding in shown["findings"] if finding["kind"] == "over_max_length"]
    # On a slow machine, the time for further rows ends before all 40 are examined.
    assert finding["count"] == shown["rows_examined"] >= len(shown["samples"])
    assert wrong.status_code == 400
    assert "max_prompt_length: 1024 must be below max_length 64" in wrong.json()["detail"]["errors"]


def test_findings_are_part_of_preview_and_validation_alike(
    server: Server, tiny_model: Path, uploaded: dict[str, Any]
) -> None:
    rows = [{"prompt": "Same?", "chosen": "a", "rejected": "a"}] * 3 + [{"prompt": "", "chosen": "a", "rejected": "b"}]
    file = write_rows(server.root / "sick.jsonl", rows)
    body = training_config(tiny_model, file, "sick")
    with server.http() as http:
        preview = http.post("/dataset/preview-formatted", json=body["dataset"]).json()
        results = http.post("/validate", json=body).json()["results"]
    kinds = {finding["kind"]: finding["count"] for finding in preview["findings"]}
    assert kinds == {"empty_side": 1, "identical_answers": 3, "duplicates": 2, "evaluation_leak": 1}
    assert {finding["kind"]: finding["count"] for finding in results["dataset_findings"]} == kinds
    assert results["rows_examined"] == preview["rows_examined"] == 4
    assert any("have the same text as chosen and rejected" in warning for warning in results["warnings"])


def test_a_folder_is_not_a_data_set_on_the_hub(server: Server, tmp_path: Path) -> None:
    write_rows(tmp_path / "secret.jsonl", [{"prompt": "SECRET", "chosen": "a", "rejected": "b"}])
    (server.root / "org" / "pairs").mkdir(parents=True)
    write_rows(server.root / "org" / "pairs" / "x.jsonl", [{"prompt": "SECRET", "chosen": "a", "rejected": "b"}])
    with server.http() as http:
        for repo_id in (str(tmp_path), "..", ".", "~/x", "../x", "a/b/c", "org/pairs"):
            body = {"source": {"source_type": "huggingface", "repo_id": repo_id}}
            for path in ("/dataset/preview", "/dataset/columns", "/dataset/preview-formatted"):
                response = http.post(path, json=body)
                assert response.status_code == 400, repo_id
                assert "SECRET" not in response.text


def test_values_that_json_cannot_express_are_previewed_as_text(server: Server) -> None:
    file = server.root / "odd.jsonl"
    file.write_text('{"deep": ' + "[" * 400 + "1" + "]" * 400 + ', "half \\ud83d": "\\ud83d"}\n')
    body = {"source": {"source_type": "local_file", "file_path": str(file)}}
    with server.http() as http:
        for path in ("/dataset/preview", "/dataset/columns", "/dataset/preview-formatted"):
            assert http.post(path, json=body).status_code == 200, path
        assert "half ?" in http.post("/dataset/columns", json=body).json()["columns"]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write rows in the format of the path's suffix."""
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_very_long_cell_is_truncated(server: Server) -> None:
    file = server.root / "book.jsonl"
    file.write_text(json.dumps({"prompt": "x" * 3_000_000, "chosen": "a", "rejected": "b"}) + "\n")
    source = {"source_type": "local_file", "file_path": str(file)}
    with server.http() as http:
        shown = http.post("/dataset/preview", json={"source": source}).json()["samples"][0]["prompt"]
    assert len(shown) < 100_000
    kept = shown.count("x")
    assert shown == "x" * kept + f"… ({3_000_000 - kept:,} more characters)"


def test_json_with_a_wrong_suffix_is_reported(server: Server) -> None:
    with server.http() as http:
        response = http.post("/dataset/preview", content=b"{}", headers={"Content-Type": "text/plain"})
    assert response.status_code == 400
    assert "the Content-Type is text/plain; send application/json" in response.json()["detail"]["errors"]


def test_an_upload_that_a_job_needs_is_deleted_only_by_force_and_files_of_others_stay(
    server: Server, tmp_path: Path
) -> None:
    content = pairs_file(tmp_path / "pairs.jsonl").read_bytes()
    first, second, third = (upload(server, "needed.jsonl", content).json()["dataset_id"] for _ in range(3))
    folders = {name: server.root / "data" / "uploads" / name for name in (first, second, third)}
    (folders[first] / "notes.txt").write_text("mine")
    database = Database(f"sqlite:///{server.root / 'data' / 'merlina.db'}")
    states: list[tuple[str, str, int | None, str]] = [
        ("paused", "paused", None, first), ("failed", "failed", 4, first), ("stopped", "stopped", 4, first),
        ("cancelled", "cancelled", 4, first), ("no_checkpoint", "failed", None, first),
        ("done", "completed", None, second),
        ("linked", "stopped", 2, third),
    ]  # fmt: skip
    (tmp_path / "link").symlink_to(folders[third])
    try:
        with database.write() as connection:
            for job_id, state, checkpoint, name in states:
                file = (tmp_path / "link" if job_id == "linked" else folders[name]) / "rows.jsonl"
                jobs.add(connection, {
                    "job_id": f"needs_{job_id}", "state": state, "priority": 3, "config": {}, "base_model": "m",
                    "output_name": "o", "target_dir": f"/m/{job_id}", "dataset_file": str(file),
                    "created_at": 1.0, "updated_at": 1.0, "last_checkpoint": checkpoint,
                })  # fmt: skip
        with server.http() as http:
            refused = http.delete(f"/dataset/uploads/{first}")
            assert refused.status_code == 409
            detail = refused.json()["detail"]
            assert detail["can_force"] is True
            for job_id in ("paused", "failed", "stopped", "cancelled"):
                assert f"needs_{job_id} ({job_id})" in detail["message"]
            assert "no_checkpoint" not in detail["message"]
            assert http.delete(f"/dataset/uploads/{third}").status_code == 409
            assert http.delete(f"/dataset/uploads/{second}").status_code == 200
            assert not folders[second].exists()
            assert (folders[first] / "rows.jsonl").exists()
            assert http.delete(f"/dataset/uploads/{first}", params={"force": True}).status_code == 200
        assert [path.name for path in folders[first].iterdir()] == ["notes.txt"]
        with server.client() as client:
            with pytest.raises(OverridableError, match="needs_linked"):
                client.delete_upload(third)
            client.delete_upload(third, force=True)
    finally:
        with database.write() as connection:
            for job_id, *_ in states:
                jobs.remove(connection, f"needs_{job_id}")
        database.close()


def test_a_second_deletion_does_not_undo_the_first(server: Server, tmp_path: Path) -> None:
    """The first deletion is committed and still removes files."""
    content = pairs_file(tmp_path / "pairs.jsonl").read_bytes()
    dataset_id = upload(server, "twice.jsonl", content).json()["dataset_id"]
    uploads = server.root / "data" / "uploads"
    with server.http() as http:
        assert http.delete(f"/dataset/uploads/{dataset_id}").status_code == 200
        leaving = uploads / f".deleted_{dataset_id}"
        leaving.mkdir()
        assert http.delete(f"/dataset/uploads/{dataset_id}").status_code == 404
    assert leaving.exists()
    assert not (uploads / dataset_id).exists()
    leaving.rmdir()


def browse(server: Server, body: dict[str, Any], path: str = "preview-formatted", **query: Any) -> httpx.Response:
    with server.http() as http:
        return http.post(f"/dataset/{path}", json=body, params=query)


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "parquet"])
def test_previews_begin_at_any_row(server: Server, suffix: str) -> None:
    rows = [{"prompt": f"Why {n}?", "chosen": "So.", "rejected": "No."} for n in range(1, 1201)]
    file = write_rows(server.root / f"browsed.{suffix}", rows)
    body = {"source": {"source_type": "local_file", "file_path": str(file)}}
    raw = browse(server, body, "preview", row=1000).json()
    assert (raw["samples"], raw["next_row"]) == (rows[999:1009], 1010)
    formatted = browse(server, body, row=1198).json()
    assert [(row["row"], row["stored"]) for row in formatted["rows"]] == [
        (n, [rows[n - 1]]) for n in (1198, 1199, 1200)
    ]
    assert [sample["row"] for sample in formatted["samples"]] == [1198, 1199, 1200]
    assert (formatted["next_row"], formatted["rows_examined"]) == (None, 3)
    for path in ("preview", "preview-formatted"):
        refused = browse(server, body, path, row=1201)
        assert (refused.status_code, refused.json()["detail"].split(":")[0]) == (400, "There is no row 1,201")
        assert browse(server, body, path, row=0).status_code == 400


def test_a_search_shows_truncated_rows_with_their_lengths(server: Server, tiny_model: Path) -> None:
    rows = [
        {"prompt": f"Why {n}?", "chosen": "So. " * (1 + 99 * (n % 40 == 0)), "rejected": "No."} for n in range(1, 91)
    ]
    file = write_rows(server.root / "truncated.jsonl", rows)
    body = {"source": {"source_type": "local_file", "file_path": str(file)}, "model_name": str(tiny_model)}
    found = browse(server, body, only="over_max_length", max_length=64).json()
    assert [row["row"] for row in found["rows"]] == [40, 80]
    assert all("over_max_length" in row["findings"] for row in found["rows"])
    assert [sample["row"] for sample in found["samples"]] == [40, 80]
    assert (found["next_row"], found["lengths"]["unit"], sum(found["lengths"]["counts"])) == (None, "tokens", 90)
    assert found["lengths"]["longest"] > 64
    assert browse(server, body, only="length_bias").status_code == 400
