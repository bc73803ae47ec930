"""Several sources and data sets to evaluate on, from the request to the metrics of the run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from merlina.errors import ConflictError, InvalidRequestError
from tests.harness import Server, acting_worker, pairs_file
from tests.system.test_recovery import Config

pytestmark = pytest.mark.slow


def local(file: Path) -> dict[str, Any]:
    return {"source_type": "local_file", "file_path": str(file)}


def upload(server: Server, file: Path) -> str:
    with server.http() as http:
        response = http.post("/dataset/upload-file", files={"file": (file.name, file.read_bytes())})
    return str(response.json()["dataset_id"])


def test_a_run_on_several_sources_has_metrics_of_each_set_and_resumes_only_with_the_same(
    server: Server, config: Config, tmp_path: Path
) -> None:
    news = pairs_file(server.root / "news.jsonl", rows=6)
    files = [pairs_file(server.root / f"{name}.jsonl", rows=count) for name, count in (("one", 12), ("two", 8))]
    uploaded = upload(server, pairs_file(tmp_path / "code.jsonl", rows=4))
    dataset = {
        "sources": [{"source": local(file), "weight": weight} for file, weight in zip(files, (1, 3), strict=True)],
        "eval_sources": {"news": local(news), "code": {"source_type": "upload", "dataset_id": uploaded}},
    }
    content = config(server, "sources", dataset=dataset, num_epochs=50, max_steps=12, save_steps=3, eval_steps=3)
    server.crash_file.write_text("save.reported:2")
    with server.client() as client, server.http() as http:
        report = http.post("/validate", json=content).json()
        assert report["results"]["checks"]["sources_valid"] is True, report
        job = server.train(content)
        refused = http.delete(f"/dataset/uploads/{uploaded}")
        assert refused.status_code == 409
        assert job in refused.json()["detail"]["message"]
        assert server.until_ended(job).status == "failed"

        kept = news.read_text()
        pairs_file(news, rows=5)
        with pytest.raises(ConflictError, match="other rows to evaluate on in news"):
            client.resume(job)
        news.write_text(kept)

        # The same rows in the same order, but not from the same sources.
        contents = [file.read_text() for file in files]
        lines = "".join(contents).splitlines(True)
        for file, part in zip(files, (lines[:8], lines[8:]), strict=True):
            file.write_text("".join(part))
        with pytest.raises(ConflictError, match="began after rows 12 begin after 8 now"):
            client.resume(job)
        for file, content in zip(files, contents, strict=True):
            file.write_text(content)

        files[1].rename(server.root / "moved.jsonl")
        for force in (False, True):
            with pytest.raises(InvalidRequestError, match=r"dataset\.sources\.1: There is no file"):
                client.resume(job, force=force)
        (server.root / "moved.jsonl").rename(files[1])
        client.resume(job)
        status = server.until_ended(job)
        assert (status.status, status.error) == ("completed", None)
        final = status.final_metrics or {}
        assert {"final_eval_loss", "final_eval_loss/news", "final_eval_loss/code"} <= final.keys()
        assert http.delete(f"/dataset/uploads/{uploaded}").status_code == 200


def test_a_source_that_cannot_be_read_is_refused_by_its_field(server: Server, config: Config, tmp_path: Path) -> None:
    good = pairs_file(server.root / "good.jsonl", rows=4)
    broken = server.root / "broken.jsonl"
    broken.write_text(json.dumps({"prompt": "a", "chosen": "b"}) + "\n")
    missing, unusable = local(server.root / "none.jsonl"), "1 of 1 rows cannot be used"
    cases: list[tuple[dict[str, Any], str]] = [
        ({"source": local(good), "eval_source": missing}, "dataset.eval_source: There is no file"),
        ({"source": local(good), "eval_sources": {"x": local(broken)}}, f"dataset.eval_sources.x: {unusable}"),
        ({"sources": [{"source": local(good)}, {"source": local(broken)}]}, f"dataset.sources.1: {unusable}"),
    ]
    with server.http() as http:
        for dataset, message in cases:
            content = config(server, "refused", dataset=dataset)
            report = http.post("/validate", json=content).json()
            assert [error for error in report["results"]["errors"] if error.startswith(message)], report
            assert http.post("/train", json=content).status_code == 400
        outside = pairs_file(tmp_path / "outside.jsonl", rows=4)
        content = config(server, "refused", dataset={"source": local(good), "eval_source": local(outside)})
        assert http.post("/train", json=content).status_code == 403


def test_a_resume_that_only_completes_the_run_needs_no_data(server: Server, config: Config) -> None:
    files = [pairs_file(server.root / f"{name}-gone.jsonl", rows=6) for name in ("one", "two", "news")]
    sources = [{"source": local(file)} for file in files[:2]]
    dataset = {"sources": sources, "eval_source": local(files[2])}
    server.crash_file.write_text("end.placed_reported")
    job = server.train(config(server, "complete", dataset=dataset, max_steps=2))
    status = server.until_ended(job)
    assert status.status == "failed"
    assert "its model is complete in" in status.error
    with server.client() as client:
        for gone, problem in zip(
            files, ("one-gone", r"sources\.1: .*two-gone", "eval_source: .*news-gone"), strict=True
        ):
            gone.rename(gone.with_suffix(".moved"))
            with pytest.raises(InvalidRequestError, match=problem):
                client.resume(job, force=True)
            gone.with_suffix(".moved").rename(gone)
        for file in files:
            file.unlink()
        assert "only the run's last event is missing" in client.resume(job).message
    status = server.until_ended(job)
    assert (status.status, status.error) == ("completed", None)


def test_settings_of_the_first_source_and_evaluation_sets_are_checked(server: Server, config: Config) -> None:
    file = server.root / "renamed.jsonl"
    rows = [{"asked": f"What is {n}?", "good": f"It is {n}.", "bad": "No."} for n in range(12)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    mapping = {"asked": "prompt", "good": "chosen", "bad": "rejected"}
    other = pairs_file(server.root / "other.jsonl", rows=6)
    first = {"source": local(file), "column_mapping": mapping, "max_samples": 8}
    dataset = {"sources": [first, {"source": local(other)}], "eval_source": local(other)}
    content = config(server, "checked", dataset=dataset, load_best_at_end="eval_loss", early_stopping_patience=2)
    with server.http() as http:
        report = http.post("/validate", json=content).json()
        assert report["valid"], report
        assert report["results"]["time"]["steps"] == 4  # 8 and 6 pairs, 4 in a step
        leaks = [line for line in report["results"]["warnings"] if "share their prompt" in line]
        assert leaks[0].startswith("dataset: 6 of 6 pairs to evaluate on share their prompt")
        shown = http.post("/dataset/preview-formatted", json=dataset).json()
        assert "What is 0?" in shown["samples"][0]["prompt"]
        unused = http.post("/validate", json={**config(server, "unused", dataset=dataset), "eval_steps": 0}).json()
        assert any(line.startswith("dataset.eval_source: eval_steps 0") for line in unused["results"]["warnings"])
        for options, fits in (({}, False), ({"column_mapping": mapping, "max_samples": 3}, True)):
            own = {"source": local(other), "eval_source": {"source": local(file), **options}}
            report = http.post("/validate", json=config(server, "own-options", dataset=own)).json()
            assert report["valid"] is fits, report
            errors = [line for line in report["results"]["errors"] if line.startswith("dataset.eval_source: ")]
            assert bool(errors) is not fits, report
        for name in ("held_out", "eval_source", "a/b", "x" * 41):
            bad = {"source": local(other), "eval_sources": {name: local(other)}}
            refused = http.post("/validate", json=config(server, "named", dataset=bad))
            assert refused.status_code == 422 or refused.status_code == 400, refused.text
            assert f"has the name '{name}'" in refused.text


def test_all_sources_are_examined_before_a_run(server: Server, config: Config) -> None:
    short, long = pairs_file(server.root / "short.jsonl", rows=30), server.root / "long.jsonl"
    row = {"prompt": "Tell me.", "chosen": "so " * 400, "rejected": "no " * 300}
    long.write_text("".join(json.dumps({**row, "prompt": f"Tell me {n}."}) + "\n" for n in range(10)))
    alone = {"source": local(short), "test_size": 0}
    with server.http() as http:
        reports = [
            http.post("/validate", json=config(server, "examined", dataset=dataset)).json()["results"]
            for dataset in (
                alone,
                {**alone, "sources": [{"source": local(short)}, {"source": local(long)}]},
                {**alone, "eval_source": local(long)},
            )
        ]
    memory = [report["memory"]["minimum_mb"] for report in reports]
    assert memory[0] < memory[1] == memory[2]
    assert not [warning for warning in reports[0]["warnings"] if "max_length" in warning]
    assert any("10 of 40 rows are longer than max_length" in warning for warning in reports[1]["warnings"]), reports[1]
    # With four pairs in a step.
    assert [report["time"]["steps"] for report in reports] == [8, 10, 8]


def test_a_source_that_is_gone_at_the_start_fails_the_job_with_its_name(server: Server, config: Config) -> None:
    files = [pairs_file(server.root / f"{name}.jsonl", rows=4) for name in ("stays", "goes")]
    # The one slot is taken until the file is gone.
    with acting_worker(server):
        job = server.train(config(server, "gone", dataset={"sources": [{"source": local(file)} for file in files]}))
        files[1].unlink()
    status = server.until_ended(job)
    assert status.status == "failed"
    assert "goes.jsonl" in status.error
