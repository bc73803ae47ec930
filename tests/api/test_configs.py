from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.harness import Server

PART = {"base_model": "org/model", "lora_r": 64, "learning_rate": 5e-6}


@pytest.fixture
def http(server: Server) -> Any:
    with server.http() as client:
        yield client


def save(http: httpx.Client, name: str, config: dict[str, Any] | None = None, **fields: Any) -> httpx.Response:
    return http.post("/configs/save", json={"name": name, "config": PART if config is None else config, **fields})


def test_a_part_of_a_configuration_is_saved_and_comes_back(server: Server, http: httpx.Client) -> None:
    response = save(http, "part", description="For llamas", tags=["llama", "8b"])
    assert response.json()["message"] == "Configuration 'part' saved successfully"
    file = Path(response.json()["filepath"])
    assert file == server.root / "data" / "configs" / "part.json"
    assert file.stat().st_mode & 0o077 == 0
    assert http.get("/configs/part").json() == {"status": "success", "config": PART}
    whole = http.get("/configs/part", params={"include_metadata": True}).json()["config"]
    assert set(whole) == {"name", "description", "tags", "created_at", "updated_at", "config"}
    assert (whole["name"], whole["description"], whole["tags"], whole["config"]) == (
        "part", "For llamas", ["llama", "8b"], PART,
    )  # fmt: skip
    assert whole["created_at"].endswith("+00:00")


def test_the_list_names_each_file_and_when_it_was_written(http: httpx.Client) -> None:
    file = Path(save(http, "edited").json()["filepath"])
    os.utime(file, (1_700_000_000, 1_700_000_000))
    (entry,) = [entry for entry in http.get("/configs/list").json()["configs"] if entry["name"] == "edited"]
    assert (entry["filename"], entry["modified_at"]) == ("edited.json", "2023-11-14T22:13:20+00:00")
    assert entry["updated_at"] > entry["modified_at"]


def test_tokens_are_never_saved(http: httpx.Client) -> None:
    response = save(http, "tokens", {**PART, "hf_token": "hf_secret", "wandb_key": "wb_secret"})
    assert http.get("/configs/tokens").json()["config"] == PART
    assert b"secret" not in Path(response.json()["filepath"]).read_bytes()


def test_saving_again_keeps_the_time_of_creation(server: Server, http: httpx.Client) -> None:
    file = Path(save(http, "twice").json()["filepath"])
    old = {**json.loads(file.read_bytes()), "created_at": "2025-01-16T14:30:22+00:00"}
    file.write_text(json.dumps(old))
    save(http, "twice", {"lora_r": 8})
    whole = http.get("/configs/twice", params={"include_metadata": True}).json()["config"]
    assert (whole["created_at"], whole["config"]) == (old["created_at"], {"lora_r": 8})
    assert whole["updated_at"] > whole["created_at"]


def test_invalid_fields_are_reported_and_missing_ones_are_allowed(http: httpx.Client) -> None:
    response = save(http, "wrong", {"lora_r": "many", "lerning_rate": 1, "dataset": {"source": {}}})
    assert response.status_code == 400
    assert response.json()["detail"]["errors"] == [
        "config.lora_r: should be a valid integer, not 'many'",
        "config.lerning_rate: unknown field; did you mean learning_rate?",
    ]
    assert http.get("/configs/wrong").status_code == 404


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "list", "save", "import", "export", "x" * 101, "ü", 7])
def test_an_invalid_name_is_refused(http: httpx.Client, name: Any) -> None:
    response = save(http, name)
    assert response.status_code == 400
    assert response.json()["detail"]["errors"][0].startswith("name: ")


def test_they_are_listed_by_tag_and_deleted(http: httpx.Client) -> None:
    save(http, "tagged-1", tags=["only-here"])
    save(http, "tagged-2", tags=["only-here", "other"])
    response = http.get("/configs/list", params={"tag": "only-here"}).json()
    assert (response["status"], response["count"]) == ("success", 2)
    assert [entry["name"] for entry in response["configs"]] == ["tagged-1", "tagged-2"]
    times = {"created_at", "updated_at", "modified_at"}
    assert set(response["configs"][0]) == {"name", "filename", "description", "tags"} | times
    assert http.delete("/configs/tagged-1").json()["message"] == "Configuration 'tagged-1' deleted successfully"
    gone = http.delete("/configs/tagged-1")
    assert (gone.status_code, gone.json()["detail"]) == (404, "Configuration 'tagged-1' not found")
    assert "tagged-1" not in [entry["name"] for entry in http.get("/configs/list").json()["configs"]]


def test_an_exported_configuration_can_be_imported(server: Server, http: httpx.Client) -> None:
    save(http, "travels", description="d", tags=["t"])
    target = server.root / "exports" / "travels.json"
    response = http.post("/configs/export", json={"name": "travels", "output_path": str(target)})
    assert response.json() == {
        "status": "success", "message": f"Configuration exported to {target}", "filepath": str(target),
    }  # fmt: skip
    imported = http.post("/configs/import", json={"filepath": str(target), "name": "arrived"})
    assert imported.json()["message"] == "Configuration imported successfully"
    whole = http.get("/configs/arrived", params={"include_metadata": True}).json()["config"]
    assert (whole["description"], whole["tags"], whole["config"]) == ("d", ["t"], PART)


def test_a_bare_configuration_with_tokens_is_imported_without_them(server: Server, http: httpx.Client) -> None:
    file = server.root / "bare.json"
    file.write_text(json.dumps({**PART, "hf_token": "hf_secret"}))
    assert http.post("/configs/import", json={"filepath": str(file)}).status_code == 200
    assert http.get("/configs/bare").json()["config"] == PART


def test_an_export_never_overwrites_other_files(server: Server, http: httpx.Client) -> None:
    save(http, "out")
    other = server.root / "other.json"
    other.write_text('{"precious": true}')
    for path in (other, server.root / "pairs.txt", server.root):
        response = http.post("/configs/export", json={"name": "out", "output_path": str(path)})
        assert response.status_code == 400, path
        assert response.json()["detail"].startswith("output_path: ")
    assert other.read_text() == '{"precious": true}'
    missing = http.post("/configs/export", json={"name": "none", "output_path": str(server.root / "n.json")})
    assert missing.status_code == 404
    assert http.post("/configs/import", json={"filepath": str(server.root / "none.json")}).status_code == 404


def test_paths_outside_the_allowed_folders_are_403(server: Server, http: httpx.Client, tmp_path: Path) -> None:
    save(http, "stays")
    link = server.root / "link"
    link.symlink_to(tmp_path)
    (tmp_path / "there.json").write_text("{}")
    outside = [tmp_path / "x.json", link / "x.json", server.root / ".." / "x.json", server.root / ".hidden" / "x.json"]
    for path in [*outside, server.root / "data" / "runs" / "x.json"]:
        response = http.post("/configs/export", json={"name": "stays", "output_path": str(path)})
        assert response.status_code == 403, path
        assert http.post("/configs/import", json={"filepath": str(path)}).status_code == 403, path
    assert not (tmp_path / "x.json").exists()
    assert http.post("/configs/import", json={"filepath": str(link / "there.json")}).status_code == 403
