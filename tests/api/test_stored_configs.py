"""Jobs, files and orders of another version: one error at every endpoint, and no job that fails later instead."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from merlina.storage import jobs
from merlina.storage.database import Database
from tests.harness import Server

Config = Callable[..., dict[str, Any]]
SENTENCE = "was stored by another version of Merlina and cannot be used by this one: from_tomorrow: unknown field"


@pytest.fixture
def http(server: Server) -> Iterator[httpx.Client]:
    with server.http() as http:
        yield http


@pytest.fixture
def add_job(server: Server) -> Iterator[Callable[..., None]]:
    """Store jobs in the server's database as another version would have."""
    database = Database(f"sqlite:///{server.root / 'data' / 'merlina.db'}")
    added: list[str] = []

    def add(job_id: str, **values: Any) -> None:
        row = {
            "job_id": job_id, "state": "failed", "priority": 3, "base_model": "m", "output_name": "o",
            "target_dir": str(server.root / "models" / "o"), "created_at": time.time(), "updated_at": time.time(),
            "attempt_seen": 1, "last_checkpoint": 4, **values,
        }  # fmt: skip
        with database.write() as connection:
            jobs.add(connection, row)
        added.append(job_id)

    yield add
    with database.write() as connection:
        for job_id in added:
            jobs.remove(connection, job_id)
    database.close()


def test_a_job_of_another_version_is_refused_everywhere(
    server: Server, http: httpx.Client, config: Config, add_job: Callable[..., None], tmp_path: Path
) -> None:
    model = tmp_path / "model"
    model.mkdir()
    stored = {**config(server, "o"), "from_tomorrow": 1}
    add_job("job_of_tomorrow", config=stored, output_dir=str(model))
    responses = [
        http.get("/jobs/job_of_tomorrow/config"),
        http.post("/jobs/job_of_tomorrow/resume"),
        http.post("/jobs/job_of_tomorrow/retry"),
        http.post("/chat/load", json={"job_id": "job_of_tomorrow"}),
    ]
    for response in responses:
        assert response.status_code == 409, response.text
        assert SENTENCE in str(response.json()["detail"]), response.url
    assert http.get("/status/job_of_tomorrow").json()["status"] == "failed"


def test_a_job_of_an_older_form_keeps_its_meaning(
    server: Server, http: httpx.Client, config: Config, add_job: Callable[..., None]
) -> None:
    stored = config(server, "o")
    stored["dataset"]["training_mode"] = "simpo"
    add_job("job_of_yesterday", config={**stored, "hf_namespace": None})
    found = http.get("/jobs/job_of_yesterday/config").json()
    assert found["training_mode"] == "simpo"
    assert found["dataset"]["training_mode"] is None
    assert "hf_namespace" not in found


def test_foreign_files_are_neither_listed_nor_overwritten(server: Server, http: httpx.Client) -> None:
    folder = server.root / "data" / "configs"
    newer = {"name": "newer", "created_at": "x", "updated_at": "x", "config": {"from_tomorrow": 1}}
    older = {"name": "older", "created_at": "x", "updated_at": "x", "config": {"dataset": {"training_mode": "dpo"}}}
    files = {"newer": json.dumps(newer), "older": json.dumps(older), "theirs": '{"version": 3}', "notes": "no json"}
    for name, content in files.items():
        (folder / f"{name}.json").write_text(content)
    try:
        refused = http.get("/configs/newer")
        assert (refused.status_code, SENTENCE in refused.json()["detail"]) == (409, True)
        assert http.get("/configs/older").json()["config"] == {"dataset": {}, "training_mode": "dpo"}
        for name in ("theirs", "notes"):
            assert http.get(f"/configs/{name}").status_code == 404
            assert http.delete(f"/configs/{name}").status_code == 404
            saved = http.post("/configs/save", json={"name": name, "config": {"lora_r": 8}})
            assert saved.status_code == 409, saved.text
            assert "choose another name" in saved.json()["detail"]
            assert (folder / f"{name}.json").read_text() == files[name]
        assert {"newer", "older"} <= {entry["name"] for entry in http.get("/configs/list").json()["configs"]}
        assert http.delete("/configs/newer").status_code == 200
    finally:
        for name in files:
            (folder / f"{name}.json").unlink(missing_ok=True)
