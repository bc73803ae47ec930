"""Model and data from the Hub, private ones with the job's token, from validation to the finished model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.data.test_hub import REPOS
from tests.harness import Server, training_config
from tests.hub import fake_hub


@pytest.fixture
def body(tiny_model: Path) -> dict[str, Any]:
    config = training_config(tiny_model, Path("unused"), "from_hub", max_steps=2, hf_token="hf_right")
    source = {"source_type": "huggingface", "repo_id": "org/pairs", "split": "train"}
    return {**config, "base_model": "org/tiny", "dataset": {"source": source, "test_size": 0.1}}


def test_a_private_model_is_trained_on_private_data(
    new_server: Callable[..., Server], tiny_model: Path, tmp_path: Path, body: dict[str, Any]
) -> None:
    model = {path.name: path.read_bytes() for path in tiny_model.iterdir()}
    with fake_hub({**REPOS, "models/org/tiny": model}, token="hf_right") as endpoint:
        server = new_server(HF_ENDPOINT=endpoint, HF_HOME=str(tmp_path / "hf"), HF_HUB_OFFLINE="0")
        with server.http() as http:
            refused = http.post("/train", json={**body, "hf_token": "hf_wrong"})
            assert refused.status_code == 400
            errors = refused.json()["detail"]["errors"]
            assert [error.split(":")[0] for error in errors] == ["base_model", "dataset.source.repo_id"]
            assert all("the hf_token given can't see it" in error for error in errors)
            assert "hf_wrong" not in refused.text
            assert http.post("/validate", json=body).json()["valid"]
        ended = server.until_ended(server.train(body))
        assert (ended.status, ended.error) == ("completed", None)
        with server.client() as client:
            assert "30 rows read, all of them usable" in [line.message for line in client.logs(ended.job_id).logs]
    for path in server.root.rglob("*"):
        assert not path.is_file() or b"hf_right" not in path.read_bytes(), path


def test_what_is_not_on_the_hub_is_named(
    new_server: Callable[..., Server], tmp_path: Path, body: dict[str, Any]
) -> None:
    with fake_hub({}) as endpoint:
        server = new_server(HF_ENDPOINT=endpoint, HF_HOME=str(tmp_path / "hf"), HF_HUB_OFFLINE="0")
        with server.http() as http:
            errors = http.post("/validate", json={**body, "hf_token": None}).json()["results"]["errors"]
    assert "there is no model 'org/tiny' on the Hub" in errors[0]
    assert "there is no dataset 'org/pairs' on the Hub" in errors[1]
