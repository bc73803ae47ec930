from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from merlina.api.middleware.origins import ServerNames
from merlina.errors import InvalidRequestError, NotFoundError
from merlina.settings import Settings
from tests.harness import Server, damaged_model, training_config, until

KEY = "open sesame"
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def locked(slow: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with an API key and a public name."""
    root = tmp_path_factory.mktemp("locked")
    origins = "https://Lab.example:443/, http://localhost:5173"
    server = Server(root, {"API_KEY": KEY, "DOMAIN": "https://merlina.example.com", "CORS_ORIGINS": origins}).start()
    yield server
    server.stop()


def websocket_status(server: Server, headers: dict[str, str]) -> int:
    """Return 101 if the WebSocket is accepted, otherwise the response's status."""
    return websocket_answer(server, headers)[0]


def websocket_answer(server: Server, headers: dict[str, str]) -> tuple[int, str]:
    """Return the response's status and its Retry-After."""
    try:
        with connect(f"ws://127.0.0.1:{server.port}/ws/none", additional_headers=headers):
            return 101, ""
    except InvalidStatus as refused:
        return refused.response.status_code, refused.response.headers.get("Retry-After", "")


def test_with_a_key_every_request_must_have_it(locked: Server) -> None:
    with locked.http() as http:
        assert http.get("/health").status_code == 200
        wrong = [{}, {"X-API-Key": "wrong"}, {"Authorization": "Bearer wrong"}, {"Authorization": KEY}]
        for headers in [*wrong, {"Cookie": "merlina_session=9999999999.0"}, {"X-API-Key": "ключ".encode()}]:
            response = http.get("/jobs", headers=headers)
            assert response.status_code == 401, headers
            assert "X-API-Key" in response.json()["detail"]
        for headers in ({"X-API-Key": KEY}, {"Authorization": f"Bearer {KEY}"}):
            assert http.get("/jobs", headers=headers).status_code == 200, headers
    assert websocket_status(locked, {}) == 403
    assert websocket_status(locked, {"X-API-Key": KEY}) == 101
    assert KEY not in (locked.root / "server.log").read_text()


def test_a_login_gives_a_cookie_for_pages_and_websockets(locked: Server) -> None:
    with locked.http() as http:
        assert http.get("/session").json() == {"login_required": True, "logged_in": False}
        refused = http.post("/login", json={"api_key": "wrong"})
        assert (refused.status_code, "set-cookie" in refused.headers) == (401, False)
        cookie = http.post("/login", json={"api_key": KEY}).headers["set-cookie"]
        for word in ("HttpOnly", "SameSite=strict", "Secure", "Max-Age=2592000"):
            assert word in cookie
        assert KEY not in cookie
        session = cookie.split(";")[0]
        assert http.get("/jobs", headers={"Cookie": session}).status_code == 200
        assert http.get("/session", headers={"Cookie": session}).json()["logged_in"]
        assert websocket_status(locked, {"Cookie": session}) == 101
        assert http.get("/jobs", headers={"Cookie": session[:-1] + "x"}).status_code == 401
        name, expires, signature = session.removeprefix("merlina_session=").split(".")
        forgeries = (f"{name}.{int(expires) + 1}.{signature}", f"x.{expires}.{signature}", f"{name}.1.{signature}")
        for forged in (*forgeries, "..", ".", ""):
            assert http.get("/jobs", headers={"Cookie": f"merlina_session={forged}"}).status_code == 401
        assert 'merlina_session=""' in http.post("/logout", headers={"Cookie": session}).headers["set-cookie"]


def test_a_session_that_was_logged_out_is_refused_even_after_a_restart(locked: Server) -> None:
    server = locked
    with server.http() as http:
        kept, ended = (http.post("/login", json={"api_key": KEY}).headers["set-cookie"].split(";")[0] for _ in range(2))
        assert http.post("/logout", headers={"Cookie": ended}).json() == {"login_required": True, "logged_in": False}
        statuses = [http.get("/jobs", headers={"Cookie": cookie}).status_code for cookie in (kept, ended)]
        assert statuses == [200, 401]
        assert websocket_status(server, {"Cookie": ended}) == 403
    assert (server.root / "data" / "logged_out").stat().st_mode & 0o077 == 0
    server.stop()
    server.start()
    with server.http() as http:
        statuses = [http.get("/jobs", headers={"Cookie": cookie}).status_code for cookie in (kept, ended)]
        assert statuses == [200, 401]


def test_an_address_that_fails_to_log_in_too_often_has_to_wait(locked: Server) -> None:
    here = {"X-Forwarded-For": "203.0.113.7"}  # set by a proxy on this machine, which uvicorn trusts
    with locked.http() as http:
        session = http.post("/login", json={"api_key": KEY}, headers=here).headers["set-cookie"].split(";")[0]
        for number in range(10):
            assert http.post("/login", json={"api_key": f"guess {number}"}, headers=here).status_code == 401
        refused = http.post("/login", json={"api_key": KEY}, headers=here)
        assert refused.status_code == 429
        assert 0 < int(refused.headers["retry-after"]) <= 300
        assert "Too many wrong API keys from 203.0.113.7; try again in" in refused.json()["detail"]
        assert http.post("/login", json={"api_key": KEY}).status_code == 200
        assert http.get("/jobs", headers={**here, "Cookie": session}).status_code == 200
        assert http.get("/jobs", headers={**here, "X-API-Key": KEY}).status_code == 200
        for path, headers in (("/jobs", {"X-API-Key": "x"}), ("/session", {"Authorization": "Bearer x"})):
            refused = http.get(path, headers={**here, **headers})
            assert (refused.status_code, 0 < int(refused.headers["retry-after"]) <= 300) == (429, True)
        status, wait = websocket_answer(locked, {**here, "X-API-Key": "x"})
        assert (status, 0 < int(wait) <= 300) == (429, True)
        assert http.get("/jobs", headers=here).status_code == 401
        assert websocket_status(locked, {**here, "X-API-Key": KEY}) == 101


def test_a_wrong_key_counts_in_every_header_and_login(locked: Server) -> None:
    ways: list[tuple[str, str, dict[str, str]]] = [
        ("/jobs", "X-API-Key", {}), ("/jobs", "Authorization", {}), ("/session", "X-API-Key", {}),
        ("/session", "Authorization", {}), ("/ws/none", "X-API-Key", {}), ("/ws/none", "Authorization", {}),
        ("/login", "", {"api_key": "wrong"}),
    ]  # fmt: skip
    with locked.http() as http:
        for number, (path, name, body) in enumerate(ways):
            address = {"X-Forwarded-For": f"198.51.100.{number}"}
            wrong = {name: "Bearer wrong" if name == "Authorization" else "wrong"} if name else {}
            for _ in range(12):
                assert http.get("/jobs", headers=address).status_code == 401
            for limit, status in [(10, (200, 401, 403)), (2, (429,))]:
                for _ in range(limit):
                    if path.startswith("/ws"):
                        given = websocket_status(locked, {**address, **wrong})
                    else:
                        method = "POST" if body else "GET"
                        given = http.request(method, path, headers={**address, **wrong}, json=body or None).status_code
                    assert given in status, (path, name)
            assert http.get("/jobs", headers={**address, "X-API-Key": "other"}).status_code == 429
            # The right one may be the next guess.
            assert http.get("/jobs", headers={**address, "X-API-Key": KEY}).status_code == 429


def test_without_a_key_no_login_is_required(server: Server) -> None:
    with server.http() as http:
        assert http.get("/session").json() == {"login_required": False, "logged_in": True}
        assert "set-cookie" not in http.post("/login", json={"api_key": "any"}).headers


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "[evil"])
def test_a_rebound_host_name_is_refused(server: Server, host: str) -> None:
    with server.http() as http:
        for method, path in (("GET", "/jobs"), ("POST", "/jobs/x/stop"), ("GET", "/health")):
            response = http.request(method, path, headers={"Host": host})
            assert response.status_code == 403
            assert "set DOMAIN" in response.json()["detail"]
    upgrade = {"Host": host, "Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
    refused = httpx.get(
        f"{server.url}/ws/none", headers={**upgrade, "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ=="}, timeout=60
    )
    assert refused.status_code == 403


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:9", "[::1]:8000", "192.168.7.7", "merlina.localhost"])
def test_local_host_names_are_accepted(server: Server, host: str) -> None:
    with server.http() as http:
        assert http.get("/jobs", headers={"Host": host}).status_code == 200


def test_pages_elsewhere_cannot_change_anything(server: Server) -> None:
    port = server.port
    foreign = ["http://evil.example", "null", "http://127.0.0.1:1", f"http://127.0.0.1:{port}.evil.example"]
    foreign += [f"https://127.0.0.1:{port}", f"ws://127.0.0.1:{port}", "http://127.0.0.1", f"127.0.0.1:{port}", ""]
    with server.http() as http:
        for origin in foreign:
            for method, path in (("POST", "/train"), ("DELETE", "/jobs"), ("POST", "/dataset/upload-file")):
                response = http.request(method, path, headers={"Origin": origin})
                assert response.status_code == 403, (origin, path)
            assert websocket_status(server, {"Origin": origin}) == 403
            assert "access-control-allow-origin" not in http.get("/jobs", headers={"Origin": origin}).headers
        assert http.post("/jobs/none/stop", headers={"Origin": server.url}).status_code == 404
    assert websocket_status(server, {"Origin": server.url}) == 101


def test_the_public_name_and_allowed_origins_are_accepted(locked: Server) -> None:
    key = {"X-API-Key": KEY}
    own = {**key, "Host": "merlina.example.com", "Origin": "https://merlina.example.com"}
    with locked.http() as http:
        assert http.post("/jobs/none/stop", headers=own).status_code == 404
        assert http.post("/jobs/none/stop", headers={**own, "Origin": "https://other.example.com"}).status_code == 403
    with locked.http(headers=key) as http:
        origin = {"Origin": "https://lab.example"}
        response = http.post("/jobs/none/stop", headers=origin)
        assert (response.status_code, response.headers["access-control-allow-origin"]) == (404, "https://lab.example")
        asked = http.options("/train", headers={**origin, "Access-Control-Request-Method": "POST"})
        assert asked.status_code == 200
        assert http.post("/jobs/none/stop", headers={"Origin": "https://evil.example"}).status_code == 403


@pytest.mark.parametrize(
    ("domain", "host", "let_in", "refused"),
    [
        ("merlina.example.com", "merlina.example.com", ["https://merlina.example.com", "http://merlina.example.com:80"],
         ["https://merlina.example.com:8443", "ftp://merlina.example.com"]),
        ("https://merlina.example.com:443/", "merlina.example.com", ["https://merlina.example.com"],
         ["https://merlina.example.com:8443"]),
        ("https://merlina.example.com:8443", "merlina.example.com:8443", ["https://merlina.example.com:8443"],
         ["https://merlina.example.com"]),
        ("", "[::1]:80", ["http://[::1]"], ["https://[::1]", "http://[::1]:8000", "http://[::2]"]),
    ],
)  # fmt: skip
def test_an_origin_is_compared_by_scheme_host_and_port(
    domain: str, host: str, let_in: list[str], refused: list[str]
) -> None:
    names = ServerNames.of(Settings(_env_file=None, domain=domain, cors_origins=["https://lab.example:443/"]))
    assert all(names.is_allowed_origin(origin, "http", host) for origin in [*let_in, "https://lab.example"])
    assert all(names.is_allowed_origin(origin, "ws", host) for origin in let_in)
    assert not any(names.is_allowed_origin(origin, "http", host) for origin in [*refused, "http://lab.example"])


def test_a_body_that_is_too_large_is_refused_before_it_is_read(server: Server) -> None:
    began = time.monotonic()
    with server.http() as http:
        response = http.post("/train", content=b" " * 100_000_000, headers=JSON)
        assert response.status_code == 413
        chunked = http.post("/train", content=(b" " * 65536 for _ in range(1600)), headers=JSON)
        assert chunked.status_code == 413
        assert http.get("/health").status_code == 200
    assert time.monotonic() - began < 10


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        (b"[" * 500_000, "nested deeper than 64"),
        (b'{"base_model": ' * 1000 + b"1" + b"}" * 1000, "nested deeper than 64"),
        (b'{"base_model": "\\ud83d"}', "half of a surrogate pair"),
        (b'{"base_model": NaN}', "base_model"),
        (b'{"seed": ' + b"9" * 5000 + b"}", ""),
        (b"\xff\xfe{}", ""),
    ],
)
def test_bodies_made_to_break_parsers_are_400(server: Server, body: bytes, complaint: str) -> None:
    with server.http() as http:
        response = http.post("/validate", content=body, headers=JSON)
    assert response.status_code == 400
    assert complaint in response.text


def test_brackets_in_texts_are_no_nesting(server: Server) -> None:
    with server.http() as http:
        response = http.post("/configs/save", json={"name": "deep", "config": {}, "description": '\\"[{' * 200})
    assert response.status_code == 200


TRAVERSALS = [
    "../../etc/passwd",
    "..%2f..%2fetc%2fpasswd",
    "%2e%2e/%2e%2e/etc/passwd",
    "/etc/passwd",
    "%00",
    "a" * 5000,
]


@pytest.mark.parametrize("name", TRAVERSALS)
def test_no_path_parameter_leads_to_a_file(server: Server, name: str) -> None:
    paths = ["/configs/{}", "/status/{}", "/jobs/{}/logs", "/jobs/{}/config", "/jobs/{}/metrics", "/gpu/{}"]
    with server.http() as http:
        for path in paths:
            response = http.get(path.format(name))
            assert response.status_code in (400, 404, 405), path
            assert "root:" not in response.text
        for path in ("/dataset/uploads/{}", "/configs/{}", "/jobs/{}"):
            assert http.delete(path.format(name)).status_code in (400, 404, 405), path


@pytest.mark.parametrize("output_name", ["../x", "/tmp/x", "a/../../x", "..", "x/", "a\0b", "~x", "a\\..\\b"])
def test_an_output_name_that_leads_elsewhere_is_refused(server: Server, tiny_model: Path, output_name: str) -> None:
    with server.http() as http:
        response = http.post("/train", json=training_config(tiny_model, server.root / "p.jsonl", output_name))
    assert response.status_code == 400
    assert response.json()["detail"]["errors"][0].startswith("output_name: ")


def test_a_data_set_is_reached_only_below_the_allowed_folders(server: Server, tmp_path: Path) -> None:
    (tmp_path / "secret.jsonl").write_text('{"prompt": "secret", "chosen": "a", "rejected": "b"}\n')
    link = server.root / "innocent.jsonl"
    link.symlink_to(tmp_path / "secret.jsonl")
    hidden = server.root / ".netrc"
    hidden.write_text("machine secret\n")
    run = server.root / "data" / "runs" / "any" / "secrets.json"
    outside = [tmp_path / "secret.jsonl", link, server.root / "x" / ".." / ".." / "etc", "/proc/self/environ"]
    bodies = [
        {"source": {"source_type": "local_file", "file_path": str(path), "file_format": "jsonl"}}
        for path in [*outside, hidden, run]
    ]
    with server.http() as http:
        for body in bodies:
            for path in ("/dataset/preview", "/dataset/preview-formatted", "/dataset/columns"):
                response = http.post(path, json=body)
                assert response.status_code == 403, (path, body)
                assert "machine secret" not in response.text


def test_templates_are_text_and_reach_nothing(server: Server) -> None:
    attacks = ["{0.__class__.__mro__}", "{{ ''.__class__ }}", "%(x)s", "${HOME}", "{prompt.__init__.__globals__}"]
    content = b'{"prompt": "p {0.__class__}", "chosen": "c", "rejected": "r"}\n'
    with server.http() as http:
        upload = http.post("/dataset/upload-file", files={"file": ("x.jsonl", content)}).json()
        for attack in attacks:
            templates = {"user_prefix": attack, "assistant_suffix": "!"}
            body = {
                "source": {"source_type": "upload", "dataset_id": upload["dataset_id"]},
                "format": {"format_type": "custom", "custom_templates": templates},
            }
            shown = http.post("/dataset/preview-formatted", json=body).json()["samples"]
            assert shown == [{"prompt": f"{attack}p {{0.__class__}}", "chosen": "c!", "rejected": "r!", "row": 1}]


def test_a_models_template_is_kept_in_its_sandbox(server: Server, tiny_model: Path) -> None:
    model = Path(shutil.copytree(tiny_model, server.root / "hostile"))
    (model / "chat_template.jinja").write_text("{{ ''.__class__.__mro__[1].__subclasses__() }}")
    content = b'{"prompt": "p", "chosen": "c", "rejected": "r"}\n'
    with server.http() as http:
        upload = http.post("/dataset/upload-file", files={"file": ("x.jsonl", content)}).json()
        source = {"source_type": "upload", "dataset_id": upload["dataset_id"]}
        body = {"source": source, "format": {"format_type": "tokenizer"}, "model_name": str(model)}
        response = http.post("/dataset/preview-formatted", json=body)
    assert response.json()["samples"] == []
    assert (
        "the model's chat template cannot render it: access to attribute '__class__'" in response.json()["warnings"][0]
    )
    assert "Popen" not in response.text


def test_a_parquet_bomb_is_refused_and_leaves_nothing(server: Server, tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.parquet"
    column = pa.array(["x" * 1000]).dictionary_encode().indices
    rows = pa.DictionaryArray.from_arrays(pa.repeat(column[0], 20_000_000), pa.array(["x" * 1000]))
    pq.write_table(pa.table({"prompt": rows}), bomb, compression="zstd")
    assert bomb.stat().st_size < 5_000_000
    before = sorted((server.root / "data" / "uploads").iterdir())
    began = time.monotonic()
    with server.http() as http, bomb.open("rb") as file:
        response = http.post("/dataset/upload-file", files={"file": ("bomb.parquet", file)})
    assert response.status_code == 400
    assert "decompresses to more than 200 times its size" in response.json()["detail"]
    assert time.monotonic() - began < 20
    assert sorted((server.root / "data" / "uploads").iterdir()) == before


def test_a_cached_response_is_denied_to_unauthorized_requests(locked: Server) -> None:
    with locked.http(headers={"X-API-Key": KEY}) as http:
        responses = [http.get("/jobs", headers={"Origin": "https://lab.example"}) for _ in range(3)]
        assert all(response.json() == {} for response in responses)
        for response in responses:
            assert response.headers.get_list("access-control-allow-origin") == ["https://lab.example"]
        assert "access-control-allow-origin" not in http.get("/jobs").headers
    with locked.http() as http:
        assert http.get("/jobs").status_code == 401


@pytest.mark.long
def test_no_token_of_the_server_is_stored_anywhere(
    new_server: Callable[..., Server], config: Callable[..., dict[str, Any]], tiny_model: Path, tmp_path: Path
) -> None:
    server = new_server(HF_TOKEN="hf_of_the_server")
    test_no_token_of_a_run_is_stored_anywhere(server, config, tiny_model, tmp_path)


def test_no_token_of_a_run_is_stored_anywhere(
    server: Server, config: Callable[..., dict[str, Any]], tiny_model: Path, tmp_path: Path
) -> None:
    tokens = {"hf_token": "hf_of_the_job", "wandb_key": "wb_of_the_job"}
    body = config(server, "with_tokens", max_steps=2, **tokens)
    with server.http() as http:
        responses = [http.post("/validate", json=body), http.post("/train", json={**body, "lora_r": "x"})]
        responses.append(http.post("/configs/save", json={"name": "kept", "config": body}))
        responses.append(http.post("/model/preload", json={"model_name": "/none", "hf_token": tokens["hf_token"]}))
        job_id = server.train(body)
        command_line = worker_command_line(server, job_id)
        assert server.until_ended(job_id).status == "completed"
        failed = server.train({**body, "base_model": str(damaged_model(tiny_model, tmp_path / "damaged"))})
        assert server.until_ended(failed).status == "failed"
        responses += [http.get(f"/jobs/{job_id}/{part}") for part in ("config", "logs", "metrics")]
        responses += [http.get(path) for path in ("/configs/kept", f"/status/{failed}", "/jobs/history", "/metrics")]
    words = ["hf_of_the_server", *tokens.values()]
    for response in responses:
        assert not any(word in response.text for word in words), response.request.url
    assert not any(word.encode() in command_line for word in words)
    for path in server.root.rglob("*"):
        if path.is_file() and path.name != "secrets.json":
            content = path.read_bytes()
            assert not any(word.encode() in content for word in words), path
    secrets = server.folder(failed).secrets_file
    assert json.loads(secrets.read_bytes()) == tokens
    assert not server.folder(job_id).secrets_file.exists()
    for path in server.folder(failed).path.rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path


def worker_command_line(server: Server, job_id: str) -> bytes:
    """Return the `ps` line of a job's worker, once it has set its title."""
    worker = until(server.folder(job_id).worker, what="the worker's name")
    return Path(f"/proc/{worker.pid}/cmdline").read_bytes()


@pytest.mark.parametrize("name", ["merlina.db", "merlina.db-wal", "helper.log", "server.lock", "runs"])
def test_the_servers_own_files_are_out_of_reach(server: Server, name: str) -> None:
    source = {"source_type": "local_file", "file_path": str(server.root / "data" / name), "file_format": "csv"}
    with server.http() as http:
        response = http.post("/dataset/preview", json={"source": source})
    assert response.status_code == 403
    assert "reserved for the server" in response.json()["detail"]


def test_a_job_without_a_name_is_not_all_jobs(server: Server) -> None:
    with server.http() as http:
        assert http.delete("/jobs/", follow_redirects=True).status_code == 404
    with server.client() as client:
        for name in ("", "..", "../jobs"):
            with pytest.raises((InvalidRequestError, NotFoundError)):
                client.delete(name)
