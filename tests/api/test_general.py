from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

import merlina
from merlina.schemas.training.config import TrainingConfig
from tests.harness import Server


@pytest.fixture
def http(server: Server) -> Iterator[httpx.Client]:
    with server.http() as http:
        yield http


def test_the_api_names_every_endpoint_it_has(http: httpx.Client) -> None:
    info = http.get("/api").json()
    assert info["version"] == merlina.__version__
    paths = http.get("/api/openapi.json").json()["paths"]
    documentation = {"GET /api/docs", "GET /api/redoc", "GET /api/openapi.json"}
    described = {f"{verb.upper()} {path}" for path, verbs in paths.items() for verb in verbs}
    assert set(info["endpoints"]) == described | documentation
    assert all(info["endpoints"].values())
    for needed in ("POST /train", "GET /status/{job_id}", "GET /jobs", "POST /dataset/upload-file"):
        assert needed in info["endpoints"]


@pytest.mark.parametrize(
    "path", ["/", "/health", "/runs/job_1", "/assets/theme.js", "/api", "/api/docs", "/jobs", "/metrics", "/nowhere"]
)
def test_head_is_get_without_a_body(server: Server, path: str) -> None:
    with server.http() as http:
        got, head = http.get(path), http.head(path)
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(f"HEAD {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        received = b"".join(iter(lambda: connection.recv(65536), b""))
    assert head.status_code == got.status_code
    assert head.headers["content-type"] == got.headers["content-type"]
    assert received.partition(b"\r\n\r\n")[2] == b""


def test_head_is_refused_if_get_is(http: httpx.Client) -> None:
    response = http.head("/train")
    assert (response.status_code, response.headers["allow"]) == (405, "POST")
    assert "HEAD" in http.put("/health").headers["allow"]


def test_the_documentation_pages_are_there(http: httpx.Client) -> None:
    assert "swagger" in http.get("/api/docs").text.lower()
    assert "redoc" in http.get("/api/redoc").text.lower()


def test_an_unknown_path_is_the_page_for_browsers_and_an_error_for_programs(http: httpx.Client) -> None:
    by_browser = http.get("/no/such/place", headers={"accept": "text/html,*/*"})
    assert (by_browser.status_code, by_browser.headers["content-type"]) == (404, "text/html; charset=utf-8")
    assert "default-src 'none'" in by_browser.headers["content-security-policy"]
    assert "/no/such/place does not exist" in http.get("/no/such/place").json()["detail"]


@pytest.mark.parametrize("path", ["/", "/new", "/runs/job_1", "/runs/job_1/chat", "/machine"])
def test_every_view_is_the_page_and_may_load_nothing_from_elsewhere(http: httpx.Client, path: str) -> None:
    response = http.get(path)
    assert response.headers["content-type"].startswith("text/html")
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "://" not in response.text
    assets = re.findall(r'"((?:\.\./|\./)+assets/[^"]+)"', response.text)
    assert len(assets) >= 4
    assert all(http.get(response.url.join(asset)).status_code == 200 for asset in assets)


def test_files_named_by_their_content_are_kept_by_browsers(http: httpx.Client) -> None:
    (script,) = re.findall(r'src="\./(assets/index-[^"]+)"', http.get("/").text)
    assert "immutable" in http.get(f"/{script}").headers["cache-control"]
    assert http.get("/assets/theme.js").headers["cache-control"] == "no-cache"
    assert http.get("/assets/../page.py").status_code == 404


def test_the_machine_is_described(http: httpx.Client) -> None:
    machine = http.get("/system").json()
    assert 0 < machine["memory_available_mb"] < machine["memory_total_mb"]
    assert [disk["name"] for disk in machine["disks"]] == ["data", "models"]
    assert {"python", "merlina", "torch"} <= set(machine["versions"])


def test_health_returns_ok(http: httpx.Client) -> None:
    assert http.get("/health").json()["status"] == "ok"


def test_stats_have_the_documents_shape(http: httpx.Client) -> None:
    stats = http.get("/stats").json()
    assert set(stats) == {"database", "websockets", "queue"}
    assert set(stats["database"]) == {"total_jobs", "total_metrics", "db_size_mb"}
    assert set(stats["queue"]) == {"queued_count", "running_count", "paused_count", "max_concurrent", "available_slots"}


def test_errors_always_have_a_detail(http: httpx.Client) -> None:
    assert http.get("/nowhere").status_code == 404
    assert "GET /api lists" in http.get("/nowhere").json()["detail"]
    wrong_method = http.put("/train", json={})
    assert wrong_method.status_code == 405
    assert "PUT is not allowed" in wrong_method.json()["detail"]
    broken = http.post("/train", content=b'{"base_model": ', headers={"content-type": "application/json"})
    assert broken.status_code == 400
    assert broken.json()["detail"]["errors"] == ["body: is not valid JSON: a value was expected at line 1, column 16"]
    for body in (b"[]", b"3", b""):
        response = http.post("/validate", content=body, headers={"content-type": "application/json"})
        assert response.status_code == 400, body
        assert response.json()["detail"]["errors"][0].startswith("body:")


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (b"\xff", "body: is not UTF-8 text (byte 0xff at position 1)"),
        (b'{"base_model": "\xc3("}', "body: is not UTF-8 text (byte 0xc3 at position 17)"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "body: contains a number with more than 4,300 digits"),
        (
            b'{"seed":\n 1 x}',
            "body: is not valid JSON: a comma or the end of the array or object was expected at line 2, column 4",
        ),
    ],
)
@pytest.mark.parametrize("path", ["/train", "/validate", "/configs/save", "/dataset/preview", "/login"])
def test_a_body_that_is_not_json_is_one_error(http: httpx.Client, path: str, body: bytes, problem: str) -> None:
    response = http.post(path, content=body, headers={"content-type": "application/json"})
    assert (response.status_code, response.json()["detail"]["errors"]) == (400, [problem])


def test_a_number_in_a_query_is_shown_as_a_number(http: httpx.Client) -> None:
    assert http.get("/jobs/history?limit=0").json()["detail"]["errors"] == [
        "limit: should be greater than or equal to 1, not 0"
    ]
    assert http.get("/jobs/history?limit=x").json()["detail"]["errors"] == ["limit: should be a valid integer, not 'x'"]


def test_no_response_is_a_422(http: httpx.Client) -> None:
    schema = http.get("/api/openapi.json").json()
    for verbs in schema["paths"].values():
        for operation in verbs.values():
            assert "422" not in operation["responses"]


def test_the_schema_has_each_fields_default_range_and_description(http: httpx.Client) -> None:
    fields = http.get("/api/openapi.json").json()["components"]["schemas"]["TrainingConfig"]["properties"]
    assert set(fields) == set(TrainingConfig.model_fields)
    described = {"type": "integer", "minimum": 1, "maximum": 1024, "default": 64}
    assert described.items() <= fields["lora_r"].items()
    assert fields["lora_r"]["description"].startswith("Rank of the adapters.")


def test_every_setting_is_in_the_example_file() -> None:
    from merlina.settings import Settings

    example = (Path(__file__).parents[2] / ".env.example").read_text()
    documented = {name.lower() for name in re.findall(r"^#?\s?([A-Z][A-Z_0-9]+)=", example, re.M)}
    assert documented == set(Settings.model_fields)
