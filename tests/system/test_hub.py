"""Model and data from the Hub, private ones with the job's token, from validation to the finished model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.data.test_hub import REPOS
from tests.harness import Server, training_config
from tests.hub import fake_hub

# Large files go the plain way, which the loopback server speaks.
ONLINE = {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}


@pytest.fixture
def body(tiny_model: Path) -> dict[str, Any]:
    config = training_config(tiny_model, Path("unused"), "from_hub", max_steps=2, hf_token="hf_right")
    source = {"source_type": "huggingface", "repo_id": "org/pairs", "split": "train"}
    return {**config, "base_model": "org/tiny", "dataset": {"source": source, "test_size": 0.1}}


def test_a_private_model_is_trained_on_private_data(
    new_server: Callable[..., Server], tiny_model: Path, tmp_path: Path, body: dict[str, Any]
) -> None:
    model = {path.name: path.read_bytes() for path in tiny_model.iterdir()}
    with fake_hub({**REPOS, "models/org/tiny": model}, token="hf_right") as hub:
        server = new_server(HF_ENDPOINT=hub.endpoint, HF_HOME=str(tmp_path / "hf"), HF_HUB_OFFLINE="0")
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
        assert "30 rows read, all of them usable" in server.log_lines(ended.job_id)
    for path in server.root.rglob("*"):
        assert not path.is_file() or b"hf_right" not in path.read_bytes(), path


def test_what_is_not_on_the_hub_is_named(
    new_server: Callable[..., Server], tmp_path: Path, body: dict[str, Any]
) -> None:
    with fake_hub({}) as hub:
        server = new_server(HF_ENDPOINT=hub.endpoint, HF_HOME=str(tmp_path / "hf"), HF_HUB_OFFLINE="0")
        with server.http() as http:
            errors = http.post("/validate", json={**body, "hf_token": None}).json()["results"]["errors"]
    assert "there is no model 'org/tiny' on the Hub" in errors[0]
    assert "there is no dataset 'org/pairs' on the Hub" in errors[1]


def test_a_finished_model_is_uploaded_as_adapter_and_as_whole(
    new_server: Callable[..., Server], config: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    with fake_hub({}, token="hf_right") as hub:
        server = new_server(HF_ENDPOINT=hub.endpoint, HF_HOME=str(tmp_path / "hf"), **ONLINE)
        common = {"push_to_hub": True, "hf_token": "hf_right", "max_steps": 2}
        adapter = config(server, "org/adapter", merge_lora_before_upload=False, **common)
        whole = config(server, "org/whole", hf_hub_private=False, **common)
        ended = [server.until_ended(job_id) for job_id in (server.train(adapter), server.train(whole))]
        logs = [server.log_lines(job.job_id) for job in ended]
    assert [job.status for job in ended] == ["completed", "completed"]
    for lines in logs:
        assert any(line.startswith("Uploaded to http") for line in lines), lines
    assert hub.private == {"org/adapter": True, "org/whole": False}
    uploaded = hub.repos["models/org/adapter"]
    saved = server.root / "models" / "org" / "adapter"
    changed = {"README.md", "merlina.json", "adapter_config.json"}
    assert set(uploaded) == {path.name for path in saved.iterdir()}
    assert all(uploaded[name] == (saved / name).read_bytes() for name in set(uploaded) - changed)
    merged = hub.repos["models/org/whole"]
    assert "model.safetensors" in merged
    assert not any(name.startswith("adapter") for name in merged)
    assert "AutoModelForCausalLM.from_pretrained('org/whole')" in merged["README.md"].decode()
    assert "PeftModel.from_pretrained(base, 'org/adapter')" in uploaded["README.md"].decode()
    for name, content in [*uploaded.items(), *merged.items()]:
        assert str(tmp_path).encode() not in content, name
        assert b"hf_right" not in content, name


def test_a_failed_upload_leaves_the_job_completed_and_the_model_safe(
    new_server: Callable[..., Server], config: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    with fake_hub({}) as hub:
        server = new_server(HF_ENDPOINT=hub.endpoint, HF_HOME=str(tmp_path / "hf"), **ONLINE)
        for name, trouble in (("refused", "refuse creation"), ("broken", "fail commit")):
            hub.trouble = {trouble}
            body = config(server, f"org/{name}", push_to_hub=True, hf_token="hf_right", max_steps=1)
            ended = server.until_ended(server.train(body))
            assert (ended.status, ended.error) == ("completed", None)
            lines = server.log_lines(ended.job_id)
            (warning,) = [line for line in lines if line.startswith("The upload to the Hub failed")]
            assert "the model is safe in" in warning
            assert f"hf upload org/{name}" in warning
            assert (server.root / "models" / "org" / name / "adapter_model.safetensors").is_file()
    assert {path.name for path in (server.root / "models" / "org").iterdir()} == {"refused", "broken"}


def test_a_cut_connection_is_taken_up_again_and_what_was_read_is_there_offline(
    new_server: Callable[..., Server], tiny_model: Path, tmp_path: Path, body: dict[str, Any]
) -> None:
    model = {path.name: path.read_bytes() for path in tiny_model.iterdir()}
    body = {**body, "hf_token": None}
    repos = {**REPOS, "models/org/tiny": model}
    with fake_hub(repos, trouble=["cut model.safetensors", "cut train.jsonl"]) as hub:
        server = new_server(HF_ENDPOINT=hub.endpoint, HF_HOME=str(tmp_path / "hf"), **ONLINE)
        ended = server.until_ended(server.train(body))
        assert (ended.status, ended.error) == ("completed", None)
        assert hub.cuts == 2
        assert "30 rows read, all of them usable" in server.log_lines(ended.job_id)
        server.stop()
    offline = new_server(HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path / "hf"))
    ended = offline.until_ended(offline.train({**body, "output_name": "offline"}))
    assert (ended.status, ended.error) == ("completed", None)
    assert "30 rows read, all of them usable" in offline.log_lines(ended.job_id)
