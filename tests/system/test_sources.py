"""Several sources and data sets to evaluate on, from the request to the metrics of the run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from merlina.errors import ConflictError
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
    files = [pairs_file(server.root / f"{name}.jsonl", rows=12) for name in ("one", "two")]
    uploaded = upload(server, pairs_file(tmp_path / "code.jsonl", rows=4))
    dataset = {
        "sources": [{"source": local(file)} for file in files],
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
        files[1].rename(server.root / "moved.jsonl")
        with pytest.raises(ConflictError, match="There is no file"):
            client.resume(job)
        (server.root / "moved.jsonl").rename(files[1])
        news.write_text(kept)
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
