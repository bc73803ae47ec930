"""A loopback server that speaks as much of the Hub's protocol as its real clients ask for."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"

Repos = dict[str, dict[str, bytes]]
"""`datasets/org/name` or `models/org/name` -> its files."""


@contextmanager
def fake_hub(repos: Repos, token: str | None = None) -> Iterator[str]:
    """Serves the repositories; with a token, only to who sends it. Yields the address for HF_ENDPOINT."""

    class Handler(_Handler):
        files = repos
        needed_token = token

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    files: Repos
    needed_token: str | None
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        self._answer(self.rfile.read(length))

    def log_message(self, *_: object) -> None:
        return

    def _answer(self, body: bytes = b"") -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        if self.needed_token and self.headers.get("Authorization") != f"Bearer {self.needed_token}":
            self._send(401, b"", {"X-Error-Code": "RepoNotFound"})
            return
        if path.startswith("api/"):
            self._api(path.removeprefix("api/"), body)
        else:
            self._file(path)

    def _api(self, path: str, body: bytes) -> None:
        repo = next((name for name in self.files if path == name or path.startswith(f"{name}/")), None)
        if repo is None:
            self._send(404, b"", {"X-Error-Code": "RepoNotFound"})
            return
        files, rest = self.files[repo], path.removeprefix(repo).strip("/")
        entries = [{"type": "file", "path": name, "size": len(data), "oid": _oid(data)} for name, data in files.items()]
        if rest.startswith("tree/"):
            self._json(entries)
        elif rest.startswith("paths-info/"):
            wanted = json.loads(body)["paths"] if body.startswith(b"{") else []
            self._json([entry for entry in entries if entry["path"] in wanted])
        elif not rest or rest.startswith("revision/"):
            siblings = [{"rfilename": name} for name in files]
            self._json({"id": repo.split("/", 1)[1], "sha": COMMIT, "siblings": siblings, "private": False, "tags": []})
        else:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound"})

    def _file(self, path: str) -> None:
        for repo, files in self.files.items():
            address = repo.removeprefix("models/")
            if path.startswith(f"{address}/resolve/"):
                data = files.get(path.removeprefix(f"{address}/resolve/").split("/", 1)[1])
                if data is None:
                    self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
                    return
                self._send(200, data, {"ETag": f'"{_oid(data)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"})
                return
        self._send(404, b"", {"X-Error-Code": "RepoNotFound"})

    def _json(self, content: object) -> None:
        self._send(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        wanted = self.headers.get("Range")
        if wanted and status == 200:
            first, last = wanted.removeprefix("bytes=").split("-")
            end = min(int(last), len(data) - 1) if last else len(data) - 1
            headers = {**headers, "Content-Range": f"bytes {first}-{end}/{len(data)}"}
            status, data = 206, data[int(first) : end + 1]
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def _oid(data: bytes) -> str:
    return hashlib.sha1(data, usedforsecurity=False).hexdigest()
