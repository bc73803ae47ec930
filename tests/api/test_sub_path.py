"""A server with a path in DOMAIN, behind a proxy that keeps or removes the path."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import httpx
import pytest
from websockets.sync.client import connect

from tests.harness import Server

DOMAIN = "http://tools.example.com/merlina/"


@pytest.fixture(scope="module")
def below_a_path(slow: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("below"), {"DOMAIN": DOMAIN, "API_KEY": "open sesame"}).start()
    yield server
    server.stop()


@pytest.mark.parametrize("prefix", ["", "/merlina"])
def test_the_api_responds_with_and_without_the_path(below_a_path: Server, prefix: str) -> None:
    with httpx.Client(base_url=f"{below_a_path.url}{prefix}", timeout=60) as http:
        assert http.get("/health").status_code == 200
        assert http.get("/jobs").status_code == 401
        assert http.post("/login", json={"api_key": "open sesame"}).status_code == 200
        assert http.get("/jobs").json() == {}
        description = http.get("/api/openapi.json", headers={"X-API-Key": "open sesame"}).json()
        assert description["servers"] == [{"url": "/merlina"}]
        assert "openapi.json'" in http.get("/api/docs", headers={"X-API-Key": "open sesame"}).text
    with connect(
        f"ws://127.0.0.1:{below_a_path.port}{prefix}/ws/none", additional_headers={"X-API-Key": "open sesame"}
    ) as socket:
        assert json.loads(socket.recv())["type"] == "error"


@pytest.mark.parametrize("view", ["/", "/new", "/runs/job_1", "/runs/job_1/chat", "/runs/a%2Fb", "/no/such/page"])
def test_the_page_finds_its_files_from_every_view(below_a_path: Server, view: str) -> None:
    with httpx.Client(headers={"Accept": "text/html", "X-API-Key": "open sesame"}, timeout=60) as http:
        page = http.get(f"{below_a_path.url}/merlina{view}")
        files = re.findall(r'(?:src|href)="([^"]+)"', page.text)
        assert len(files) >= 4
        for file in files:
            address = page.url.join(file)
            assert address.path.startswith("/merlina/assets/"), file
            assert http.get(address).status_code == 200


def test_the_session_cookie_belongs_to_the_path(below_a_path: Server) -> None:
    """Two servers below one host name must not log each other's visitors out."""
    response = httpx.post(f"{below_a_path.url}/merlina/login", json={"api_key": "open sesame"}, timeout=60)
    assert "path" not in response.headers["set-cookie"].lower()
