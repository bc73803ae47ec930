"""How a client reaches its server, never through a proxy on this machine, and its errors if it cannot."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from merlina.client import AsyncClient, Client
from merlina.errors import InvalidRequestError, NotFoundError, ServerError
from tests.harness import Server

PAGE = "<html><head><title>502 Bad&nbsp;Gateway</title></head><body><script>x</script><h1>nginx</h1></body></html>"
DEAD_PROXY = "http://user:secret@127.0.0.1:9"


@contextmanager
def listening(status: int, body: str, kind: str = "text/html") -> Iterator[HTTPServer]:
    """A server that responds with the same page to every request, like a proxy without a backend."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_arguments: object) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def behind_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, DEAD_PROXY)
        monkeypatch.setenv(name.lower(), DEAD_PROXY)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("behind_a_proxy")
def test_requests_to_this_machine_never_use_a_proxy(server: Server) -> None:
    for host in ("127.0.0.1", "localhost"):
        with Client(f"http://{host}:{server.port}") as client:
            assert client.health().status == "ok"
            with pytest.raises(NotFoundError, match="no job 'none'"):
                list(client.watch("none"))

    async def ask() -> None:
        async with AsyncClient(server.url) as client:
            assert (await client.health()).status == "ok"
            with pytest.raises(NotFoundError, match="no job 'none'"):
                [message async for message in client.watch("none")]

    asyncio.run(ask())
    command = [sys.executable, "-m", "merlina.cli.main", "jobs", "--url", server.url]
    subprocess.run(command, env=os.environ, check=True, capture_output=True, timeout=60)


@pytest.mark.usefixtures("behind_a_proxy")
def test_a_proxy_on_the_way_is_named_without_its_password() -> None:
    with Client("http://merlina.example.com:8000", retries=0) as client, pytest.raises(ServerError) as raised:
        client.health()
    assert "through the proxy 127.0.0.1:9; add merlina.example.com to NO_PROXY" in raised.value.message
    assert "secret" not in raised.value.message


def test_the_cause_of_a_failed_connection_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    causes = {
        f"http://127.0.0.1:{port}": "the connection was refused; `merlina serve` starts one",
        "http://nowhere.invalid": "the host name 'nowhere.invalid' cannot be resolved",
    }
    for url, cause in causes.items():
        with Client(url, retries=0) as client, pytest.raises(ServerError) as raised:
            client.health()
        assert cause in raised.value.message, raised.value.message
    key, certificate = tmp_path / "key", tmp_path / "certificate"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with listening(200, "{}") as server:
        plain = server.server_address[1]
        with Client(f"https://127.0.0.1:{plain}", retries=0) as client, pytest.raises(ServerError, match="speak TLS"):
            client.health()
    with listening(200, "{}") as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        url = f"https://127.0.0.1:{server.server_address[1]}"
        with Client(url, retries=0) as client, pytest.raises(ServerError, match=r"certificate is not accepted \(self"):
            client.health()


def test_a_proxys_error_page_is_one_line() -> None:
    assert _message_of(502, PAGE).endswith("for example, from a proxy: 502 Bad Gateway")
    assert "<" not in _message_of(503, "<h1>Sorry</h1>")


def _message_of(status: int, page: str) -> str:
    with listening(status, page) as server:
        url = f"http://127.0.0.1:{server.server_address[1]}"
        with Client(url) as client, pytest.raises(ServerError) as raised:
            client.health()
    return raised.value.message


def test_address_and_key_come_from_the_environment_unless_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MERLINA_URL", "http://lab.example:9000/merlina/")
    monkeypatch.setenv("MERLINA_API_KEY", "from the environment")
    for client in (Client(), AsyncClient().blocking):
        assert (client.url, client.headers) == (
            "http://lab.example:9000/merlina", {"X-API-Key": "from the environment"}
        )  # fmt: skip
        client.close()
    with Client("http://127.0.0.1:1", "given") as client:
        assert (client.url, client.headers) == ("http://127.0.0.1:1", {"X-API-Key": "given"})
    monkeypatch.setenv("MERLINA_URL", "lab.example")
    with pytest.raises(InvalidRequestError, match="is not the address of a server"):
        Client()
