"""Model and data from the Hub, private ones with the job's token, from validation to the finished model."""

from __future__ import annotations

import io
import json
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.cli.test_commands import command
from tests.data.test_hub import CARD, REPOS
from tests.harness import Server, training_config
from tests.hub import FakeHub, fake_hub

pytestmark = pytest.mark.slow

# Large files are uploaded over plain HTTP, which the local server implements.
ONLINE = {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}


@pytest.fixture(scope="module")
def online(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[FakeHub, Server]]:
    """A Hub whose repositories each test adds, and a server that uses it."""
    root = tmp_path_factory.mktemp("online")
    with fake_hub({}) as hub:
        server = Server(root, {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(root / "hf"), "HF_HUB_OFFLINE": "0"})
        yield hub, server.start()
        server.stop()
        server.end_workers()


@pytest.fixture
def private_hub(online: tuple[FakeHub, Server]) -> Iterator[FakeHub]:
    hub, _ = online
    hub.token = "hf_right"
    yield hub
    hub.token = None


@pytest.fixture
def body(tiny_model: Path) -> dict[str, Any]:
    config = training_config(tiny_model, Path("unused"), "from_hub", max_steps=2, hf_token="hf_right")
    source = {"source_type": "huggingface", "repo_id": "org/pairs", "split": "train"}
    return {**config, "base_model": "org/tiny", "dataset": {"source": source, "test_size": 0.1}}


def assert_nowhere(folder: Path, *secrets: bytes) -> None:
    """No file below the folder holds any of the secrets."""
    for path in folder.rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        assert not any(secret in content for secret in secrets), path


def test_a_private_model_is_trained_on_private_data(
    online: tuple[FakeHub, Server], private_hub: FakeHub, tiny_model: Path, body: dict[str, Any]
) -> None:
    _, server = online
    model = {path.name: path.read_bytes() for path in tiny_model.iterdir()}
    train = REPOS["datasets/org/pairs"]["train.jsonl"]
    pairs = {"train.jsonl": train, "validation.jsonl": b"".join(train.splitlines(keepends=True)[:12])}
    body["dataset"]["source"]["split"] = "validation"
    private_hub.repos.update({"datasets/org/pairs": pairs, "models/org/tiny": model})
    with server.http() as http:
        for token, complaint in (
            ("hf_wrong", "The Hub rejected the given hf_token"),
            ("hf_stranger", "the given hf_token has no access to it"),
        ):
            refused = http.post("/train", json={**body, "hf_token": token})
            assert refused.status_code == 400
            errors = refused.json()["detail"]["errors"]
            assert [error.split(":")[0] for error in errors] == ["base_model", "dataset.source.repo_id"]
            assert all(complaint in error for error in errors)
            assert token not in refused.text
        assert http.post("/validate", json=body).json()["valid"]
    ended = server.until_ended(server.train(body))
    assert (ended.status, ended.error) == ("completed", None)
    assert "12 rows read, all of them usable" in server.log_lines(ended.job_id)
    assert_nowhere(server.root, b"hf_right", b"hf_wrong", b"hf_stranger")


def test_private_data_are_looked_at_with_a_token_that_nothing_keeps(
    online: tuple[FakeHub, Server], private_hub: FakeHub, tiny_model: Path, tmp_path: Path, body: dict[str, Any]
) -> None:
    _, server = online
    model = {path.name: path.read_bytes() for path in tiny_model.iterdir()}
    private_hub.repos.update({"datasets/org/seen": REPOS["datasets/org/pairs"], "models/org/seen": model})
    body["dataset"]["source"]["repo_id"], body["base_model"] = "org/seen", "org/seen"
    question = {"source": body["dataset"]["source"], "model_name": "org/seen"}
    paths = ("preview", "columns", "preview-formatted")
    with server.http() as http:

        def ask(path: str, **given: Any) -> Any:
            answer = http.post(f"/dataset/{path}", json={**question, **given})
            assert "hf_" not in answer.text.replace("hf_token", ""), path
            return answer.json()

        for path in paths:
            assert ask(path, hf_token="hf_right")["samples"][0]["prompt"].count("Why 0?") == 1
        # Responses to requests with the token do not give others access.
        for path in paths:
            assert "if it is private, set hf_token" in ask(path)["detail"]
            assert "rejected the given hf_token" in ask(path, hf_token="hf_wrong")["detail"]
            assert "the given hf_token has no access to it" in ask(path, hf_token="hf_stranger")["detail"]
            assert ask(path, hf_token="hf_ ü")["detail"]["errors"] == [
                "hf_token: contains characters that are not valid in a token"
            ]
        refused = http.post("/validate", json={**body, "dataset": {**question, "hf_token": "hf_right"}}).json()
        assert refused["detail"]["errors"][0].startswith("dataset.hf_token: unknown field")
    file = tmp_path / "run.json"
    file.write_text(json.dumps(body))
    for options in ([], ["--raw"]):
        assert "Why 0?" in command("preview", str(file), *options, url=server.url).stdout
    assert_nowhere(server.root, b"hf_right", b"hf_wrong", b"hf_stranger")


def test_a_private_models_tokenizer_needs_its_token(
    online: tuple[FakeHub, Server], private_hub: FakeHub, tiny_model: Path
) -> None:
    _, server = online
    private_hub.repos["models/org/preloaded"] = {path.name: path.read_bytes() for path in tiny_model.iterdir()}
    with server.http() as http:
        for body in ({}, {"hf_token": "hf_wrong"}):
            refused = http.post("/model/preload", json={"model_name": "org/preloaded", **body})
            assert refused.status_code == 400
            assert "hf_wrong" not in refused.text
        assert "org/preloaded" not in http.get("/model/cached").json()["cached_models"]
        right = {"model_name": "org/preloaded", "hf_token": "hf_right"}
        assert http.post("/model/preload", json=right).json()["vocab_size"] == 400
        assert "org/preloaded" in http.get("/model/cached").json()["cached_models"]
    assert_nowhere(server.root, b"hf_right")


def test_what_is_not_on_the_hub_or_gated_there_is_named(online: tuple[FakeHub, Server], body: dict[str, Any]) -> None:
    hub, server = online
    gated = {"models/org/gated": {"config.json": b"{}"}, "datasets/org/gated": REPOS["datasets/org/pairs"]}
    hub.repos.update(gated)
    hub.gated.update(gated)
    with server.http() as http:
        body["dataset"]["source"]["repo_id"] = body["base_model"] = "org/missing"
        results = http.post("/validate", json={**body, "hf_token": None, "push_to_hub": True}).json()["results"]
        missing = results["errors"]
        assert "push_to_hub: there is no hf_token, so the model will not be uploaded" in results["warnings"]
        assert not results["checks"]["upload_ready"]
        body["dataset"]["source"]["repo_id"] = body["base_model"] = "org/gated"
        closed = http.post("/validate", json=body).json()["results"]["errors"]
    assert "There is no model 'org/missing' on the Hub" in missing[0]
    assert "There is no data set 'org/missing' on the Hub" in missing[1]
    assert "The model 'org/gated' is gated: accept its terms" in closed[0]
    assert "The data set 'org/gated' is gated: accept its terms" in closed[1]


@pytest.mark.long
def test_finished_models_are_uploaded_and_a_failed_upload_costs_nothing(
    new_server: Callable[..., Server], config: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    with fake_hub({}, token="hf_right", trouble=["fail commit org/broken"]) as hub:
        server = new_server(HF_ENDPOINT=hub.endpoint, HF_HOME=str(tmp_path / "hf"), MAX_CONCURRENT_JOBS="2", **ONLINE)
        common = {"push_to_hub": True, "hf_token": "hf_right", "max_steps": 1}
        wanted = [
            config(server, "org/adapter", merge_lora_before_upload=False, **common),
            config(server, "org/whole", hf_hub_private=False, **common),
            config(server, "org/broken", **common),
        ]
        ended = [server.until_ended(job_id) for job_id in [server.train(body) for body in wanted]]
        logs = [server.log_lines(job.job_id) for job in ended]
    assert [(job.status, job.error) for job in ended] == [("completed", None)] * 3
    for lines in logs[:2]:
        assert any(line.startswith("Uploaded to http") for line in lines), lines
    assert hub.private == {"org/adapter": True, "org/whole": False, "org/broken": True}
    assert dict(hub.commits) == dict.fromkeys(hub.repos, "Bearer hf_right")
    assert {path.name for path in (server.root / "models" / "org").iterdir()} == {"adapter", "whole", "broken"}
    assert_uploaded(hub, server.root / "models" / "org", str(tmp_path).encode())
    assert_safe(hub, server.root / "models" / "org" / "broken", logs[2])
    assert_nowhere(server.root, b"hf_right")


def assert_uploaded(hub: FakeHub, saved: Path, machine: bytes) -> None:
    """The adapter as it is on the disk and the merged model, each with a card and configuration for others."""
    uploaded, merged = hub.repos["models/org/adapter"], hub.repos["models/org/whole"]
    changed = {"README.md", "merlina.json", "adapter_config.json"}
    assert set(uploaded) == {path.name for path in (saved / "adapter").iterdir()}
    assert all(uploaded[name] == (saved / "adapter" / name).read_bytes() for name in set(uploaded) - changed)
    assert "model.safetensors" in merged
    assert merged["generation_config.json"] == uploaded["generation_config.json"]
    beside = {name.removeprefix("adapter/") for name in merged if name.startswith("adapter")}
    assert beside == {"adapter_config.json", "adapter_model.safetensors"}
    card = merged["README.md"].decode()
    assert "AutoModelForCausalLM.from_pretrained('org/whole', dtype=torch.float32)" in card
    assert "| | Before (float32) | Adapter (float32) | This model (float32) |" in card
    assert "Merged in float32 and saved as float32. After reloading, the mean log-probability per token of " in card
    assert "PeftModel.from_pretrained(base, 'org/adapter')" in uploaded["README.md"].decode()
    # A model that exists on this machine only is not a model of the Hub, even if its name looks like one.
    assert "AutoModelForCausalLM.from_pretrained('path/to/tiny', dtype=torch.float32)" in uploaded["README.md"].decode()
    assert not any("base_model:" in files["README.md"].decode() for files in (uploaded, merged))
    for name, content in [*uploaded.items(), *merged.items()]:
        assert machine not in content, name
        assert b"hf_right" not in content, name


def assert_safe(hub: FakeHub, folder: Path, lines: list[str]) -> None:
    """The Hub failed after the weights were sent, before they were committed."""
    (warning,) = [line for line in lines if line.startswith("The upload to the Hub failed")]
    assert "The Hub failed to respond for the model 'org/broken' (status 500); try again later" in warning
    assert f"The model is complete in {folder}" in warning
    assert f"`hf upload org/broken {folder} --private`" in warning
    assert (folder / "adapter_model.safetensors").is_file()
    assert hub.repos["models/org/broken"] == {}


@pytest.mark.long
def test_a_cut_connection_is_taken_up_again_and_what_was_read_is_there_offline(
    new_server: Callable[..., Server], tiny_model: Path, tmp_path: Path, body: dict[str, Any]
) -> None:
    model = {path.name: path.read_bytes() for path in tiny_model.iterdir()}
    body = {**body, "hf_token": None}
    repos = {**REPOS, "models/org/tiny": model, "models/org/hopeless": model}
    trouble = [
        "cut org/tiny/model.safetensors",
        "cut datasets/org/pairs/train.jsonl",
        "always cut org/hopeless/model.safetensors",
    ]
    with fake_hub(repos, trouble=trouble) as hub:
        settings = {"HF_ENDPOINT": hub.endpoint, "MAX_CONCURRENT_JOBS": "2", **ONLINE}
        server = new_server(HF_HOME=str(tmp_path / "hf"), **settings)
        hopeless = server.train({**body, "base_model": "org/hopeless", "output_name": "hopeless"})
        ended, failed = server.until_ended(server.train(body)), server.until_ended(hopeless)
        assert (ended.status, ended.error) == ("completed", None)
        assert hub.trouble == {"always cut org/hopeless/model.safetensors"}
        assert "30 rows read, all of them usable" in server.log_lines(ended.job_id)
        assert failed.status == "failed"
        assert failed.error
        assert "failed repeatedly for the model 'org/hopeless'; try again later" in failed.error
        server.stop()
    offline = new_server(HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path / "hf"))
    ended = offline.until_ended(offline.train({**body, "output_name": "offline"}))
    assert (ended.status, ended.error) == ("completed", None)
    assert "30 rows read, all of them usable" in offline.log_lines(ended.job_id)


def test_a_large_data_set_is_not_downloaded_for_a_few_rows(online: tuple[FakeHub, Server], tiny_model: Path) -> None:
    hub, server = online
    rows = [{"prompt": f"Why {n}?", "chosen": secrets.token_hex(400), "rejected": "No."} for n in range(1000)]
    content = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), content)
    name = "datasets/org/large"
    hub.repos[name] = {f"data/train-{n:05}-of-02000.parquet": content.getvalue() for n in range(2000)}
    hub.revisions["v1"] = {name: hub.repos[name]}
    source = {"source_type": "huggingface", "repo_id": "org/large", "revision": "v1", "config_name": "default"}
    dataset = {"source": source, "max_samples": 20, "test_size": 0}
    config = {**training_config(tiny_model, Path(), "of_large", max_steps=2), "dataset": dataset}
    hub.asked.clear()
    before = hub.bytes_sent
    with server.http() as http:
        shown = http.post("/dataset/columns", json=dataset).json()
        assert (shown["columns"], len(shown["samples"])) == (["prompt", "chosen", "rejected"], 10)
        assert http.post("/dataset/preview-formatted", json=dataset).json()["num_samples"] == 5
    ended = server.until_ended(server.train(config))
    assert (ended.status, ended.error) == ("completed", None)
    assert "20 rows read, all of them usable" in server.log_lines(ended.job_id)
    size = 2000 * len(content.getvalue())
    assert hub.bytes_sent - before < size / 100
    assert {path.rpartition("/")[2] for path in hub.asked if path.endswith(".parquet")} == {
        "train-00000-of-02000.parquet"
    }


def test_what_a_data_set_does_not_have_is_listed_before_a_run(online: tuple[FakeHub, Server], tiny_model: Path) -> None:
    hub, server = online
    train = REPOS["datasets/org/pairs"]["train.jsonl"]
    hub.repos["datasets/org/several"] = {"README.md": CARD, "english/a.jsonl": train, "french/test.jsonl": train}
    source = {"source_type": "huggingface", "repo_id": "org/several"}
    config = training_config(tiny_model, Path(), "of_several", max_steps=2)
    for fields, problem in (
        ({}, "has several configurations; set source.config_name to one of: english, french"),
        ({"config_name": "french"}, "has no split 'train'; set source.split to test"),
        ({"config_name": "french", "revision": "v9"}, "has no revision 'v9'; use a branch, a tag or a commit id"),
    ):
        dataset = {"source": {**source, **fields}}
        with server.http() as http:
            results = http.post("/validate", json={**config, "dataset": dataset}).json()["results"]
            assert results["errors"] == [f"dataset: The data set 'org/several' {problem}"]
            preview = http.post("/dataset/preview", json=dataset)
        assert (preview.status_code, preview.json()["detail"]) == (400, f"The data set 'org/several' {problem}")
    dataset = {"source": {**source, "config_name": "english"}}
    with server.http() as http:
        assert http.post("/validate", json={**config, "dataset": dataset}).json()["results"]["errors"] == []


@pytest.mark.parametrize(
    "data_files", ["/etc/passwd", "../secret.jsonl", "https://127.0.0.1/x", ["a.csv", "~/b.csv"], []]
)
def test_data_files_are_inside_the_repository(online: tuple[FakeHub, Server], data_files: Any) -> None:
    _, server = online
    source = {"source_type": "huggingface", "repo_id": "org/pairs", "data_files": data_files}
    with server.http() as http:
        refused = http.post("/dataset/preview", json={"source": source})
        bare = http.post(
            "/dataset/preview", json={"source": {**source, "repo_id": "csv", "data_files": "uploads/a.csv"}}
        )
    problem = "should be a path inside the repository, such as data/*.parquet, or a list of up to 1,000"
    assert refused.json()["detail"]["errors"] == [f"source.data_files: {problem}"]
    assert bare.json()["detail"]["errors"][0].startswith("source.repo_id: must have the form org/name with data_files")


def test_previews_of_a_hub_data_set_begin_at_any_row(online: tuple[FakeHub, Server]) -> None:
    hub, server = online
    hub.repos.update({"datasets/org/browsed": REPOS["datasets/org/pairs"]})
    body = {"source": {"source_type": "huggingface", "repo_id": "org/browsed"}}
    with server.http() as http:
        formatted = http.post("/dataset/preview-formatted", json=body, params={"row": 28}).json()
        assert [row["stored"][0]["prompt"] for row in formatted["rows"]] == ["Why 27?", "Why 28?", "Why 29?"]
        assert ([row["row"] for row in formatted["rows"]], formatted["next_row"]) == ([28, 29, 30], None)
        stored = http.post("/dataset/preview", json=body, params={"row": 12}).json()
        assert (stored["samples"][0]["prompt"], stored["next_row"]) == ("Why 11?", 22)
        beyond = http.post("/dataset/preview", json=body, params={"row": 31})
        assert (beyond.status_code, "There is no row 31" in beyond.text) == (400, True)
