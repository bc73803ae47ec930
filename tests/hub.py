"""A local server that implements the part of the Hub's protocol that the real clients use."""

from __future__ import annotations

import base64
import hashlib
import json
import socket
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

_PIECE = 64 * 1024
COMMIT = "0123456789abcdef0123456789abcdef01234567"

Repos = dict[str, dict[str, bytes]]
"""Files by repository: `datasets/org/name` or `models/org/name`."""


@dataclass
class FakeHub:
    """State of the server: repositories, including uploads, and recorded requests. `trouble` lists its failures:

    `refuse creation <org/name>`, `refuse writing <org/name>` (creation too), `fail commit <org/name>`,
    `hang <path>` (no response), `cut <repository>/<file>` (closes the connection in the middle of the file, once) or
    `always cut <repository>/<file>`.
    With a `token`, all repositories are private to it; `strangers` are valid tokens without access, and all other
    tokens are invalid. Nobody has access to the files of `gated` repositories.
    """

    repos: Repos
    token: str | None = None
    trouble: set[str] = field(default_factory=set)
    strangers: tuple[str, ...] = ("hf_stranger",)
    gated: set[str] = field(default_factory=set)
    private: dict[str, bool] = field(default_factory=dict)
    commits: list[tuple[str, str | None]] = field(default_factory=list)
    """Repository and Authorization header of each commit."""
    account: dict[str, Any] = field(
        default_factory=lambda: {
            "name": "user",
            "orgs": [{"name": "org", "roleInOrg": "write"}],
            "auth": {"type": "access_token", "accessToken": {"role": "write"}},
        }
    )
    """Response of whoami for the token."""
    released: threading.Event = field(default_factory=threading.Event)
    """Releases requests that hang."""
    asked: list[str] = field(default_factory=list)
    """Paths of all requests, in order."""
    large: dict[str, bytes] = field(default_factory=dict)
    revisions: dict[str, Repos] = field(default_factory=dict)
    """Repositories at other revisions than `main`, by the name of the branch or tag."""
    cuts: int = 0
    bytes_sent: int = 0
    """Bytes of bodies that were sent."""
    endpoint: str = ""

    def files(self, repo: str, revision: str) -> dict[str, bytes] | None:
        """Return the files of a repository at a branch, tag or commit; None if it does not exist there."""
        if revision in ("main", COMMIT):
            return self.repos.get(repo)
        found = (repos for name, repos in self.revisions.items() if revision in (name, commit_of(name)))
        return next(found, {}).get(repo)


def commit_of(revision: str) -> str:
    """Return the commit of a branch, a tag or a commit id."""
    if len(revision) == len(COMMIT):
        return revision
    return COMMIT if revision == "main" else _oid(revision.encode())


@contextmanager
def fake_hub(repos: Repos, token: str | None = None, trouble: Iterable[str] = ()) -> Iterator[FakeHub]:
    """Serve the repositories, with a `token` only to requests with it. HF_ENDPOINT is its `endpoint`."""
    hub = FakeHub(repos, token, set(trouble))

    class Handler(_Handler):
        state = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.released.set()
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    state: FakeHub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._respond()

    def do_HEAD(self) -> None:
        self._respond()

    def do_POST(self) -> None:
        self._respond(self._body())

    def do_PUT(self) -> None:
        """Store a large file at the address that `_large_files` returned."""
        self.state.large[self.path.rsplit("/", 1)[1]] = self._body()
        self._send(200, b"", {})

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def log_message(self, *_: object) -> None:
        return

    def _respond(self, body: bytes = b"") -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        if self._refuse():
            return
        self.state.asked.append(path)
        if f"hang {path}" in self.state.trouble:
            self.state.released.wait(60)
        if path == "api/whoami-v2":
            self._json(self.state.account)
        elif path == "api/repos/create":
            self._create(json.loads(body))
        elif path == "api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif path.endswith("/info/lfs/objects/batch"):
            self._large_files(json.loads(body))
        elif path.startswith("api/"):
            self._api(path.removeprefix("api/"), body)
        else:
            self._file(path)

    def _refuse(self) -> bool:
        """Reject a missing, an invalid and another account's token, each as the Hub does."""
        sent = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if not self.state.token or sent == self.state.token:
            return False
        if sent in self.state.strangers:
            self._send(404, b"", {"X-Error-Code": "RepoNotFound"})
        elif sent:
            self._send(401, b"", {"X-Error-Message": "Invalid credentials in Authorization header"})
        else:
            self._send(401, b"", {"X-Error-Code": "RepoNotFound"})
        return True

    def _api(self, path: str, body: bytes) -> None:
        repo = next((name for name in self.state.repos if path == name or path.startswith(f"{name}/")), None)
        if repo is None:
            self._send(404, b"", {"X-Error-Code": "RepoNotFound"})
            return
        rest = path.removeprefix(repo).strip("/")
        revision = rest.split("/")[1] if rest.startswith(("tree/", "paths-info/", "revision/")) else "main"
        files = self.state.files(repo, revision)
        if files is None:
            self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
            return
        entries = [{"type": "file", "path": name, "size": len(data), "oid": _oid(data)} for name, data in files.items()]
        if rest.startswith("tree/"):
            self._tree(entries, "/".join(rest.split("/")[2:]))
        elif rest.startswith("paths-info/"):
            wanted = json.loads(body)["paths"] if body.startswith(b"{") else []
            self._json([entry for entry in entries if entry["path"] in wanted])
        elif not rest or rest.startswith("revision/"):
            self._json({**self._description(repo, files), "sha": commit_of(revision)})
        elif rest == "auth-check/write":
            self._json({}, 403 if self._is_in_trouble("refuse writing", repo) else 200)
        elif rest == "auth-check" and repo in self.state.gated:
            self._send(403, b"", {"X-Error-Code": "GatedRepo"})
        elif rest.split("/")[0] in ("preupload", "commit") and self._is_in_trouble("refuse writing", repo):
            self._send(403, b'{"error": "Forbidden: pass a token that may write"}', {})
        elif rest.startswith("preupload/"):
            self._json({"files": [_upload_mode(file["path"]) for file in json.loads(body)["files"]]})
        elif rest.startswith("commit/"):
            self._commit(repo, [json.loads(line) for line in body.splitlines()])
        else:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound"})

    def _tree(self, entries: list[dict[str, Any]], folder: str) -> None:
        """Send the files and folders in a folder; with `recursive`, also those in folders inside it."""
        prefix = f"{folder}/" if folder else ""
        inside = [entry for entry in entries if entry["path"].startswith(prefix)]
        parts = [entry["path"].removeprefix(prefix).split("/")[:-1] for entry in inside]
        folders = dict.fromkeys(prefix + "/".join(part[:depth]) for part in parts for depth in range(1, len(part) + 1))
        found = [
            {"type": "directory", "path": path, "size": 0, "oid": _oid(path.encode())} for path in folders
        ] + inside
        if "recursive=true" not in self.path.lower():
            found = [entry for entry in found if "/" not in entry["path"].removeprefix(prefix)]
        if found or not folder:
            self._json(found)
        else:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound"})

    def _is_in_trouble(self, what: str, repo: str) -> bool:
        return f"{what} {repo.removeprefix('models/')}" in self.state.trouble

    def _description(self, repo: str, files: dict[str, bytes]) -> dict[str, Any]:
        name = repo.split("/", 1)[1]
        siblings = [{"rfilename": file} for file in files]
        gated = "manual" if repo in self.state.gated else False
        private = self.state.private.get(name, False)
        return {"id": name, "siblings": siblings, "private": private, "gated": gated, "tags": []}

    def _create(self, wanted: dict[str, Any]) -> None:
        name = f"{wanted.get('organization') or 'user'}/{wanted['name']}"
        if self._is_in_trouble("refuse creation", name) or self._is_in_trouble("refuse writing", name):
            self._send(403, b'{"error": "You don\'t have the rights to create a model here"}', {})
            return
        address = {"url": f"{self.state.endpoint}/{name}", "id": name}
        if f"models/{name}" in self.state.repos:
            self._json({**address, "error": "You already created this model repo"}, 409)
            return
        self.state.repos[f"models/{name}"] = {}
        self.state.private[name] = wanted["visibility"] == "private"
        self._json(address)

    def _large_files(self, wanted: dict[str, Any]) -> None:
        def upload(item: dict[str, Any]) -> dict[str, Any]:
            return {**item, "actions": {"upload": {"href": f"{self.state.endpoint}/large/{item['oid']}"}}}

        self._json({"transfer": "basic", "objects": [upload(item) for item in wanted["objects"]]})

    def _commit(self, repo: str, lines: list[dict[str, Any]]) -> None:
        self.state.commits.append((repo, self.headers.get("Authorization")))
        if self._is_in_trouble("fail commit", repo):
            self._send(500, b'{"error": "The Hub is unwell"}', {})
            return
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                self.state.repos[repo][value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.state.repos[repo][value["path"]] = self.state.large[value["oid"]]
        address = f"{self.state.endpoint}/{repo.removeprefix('models/')}/commit/{COMMIT}"
        self._json({"commitUrl": address, "commitOid": COMMIT, "success": True})

    def _file(self, path: str) -> None:
        for repo in self.state.repos:
            address = repo.removeprefix("models/")
            if path.startswith(f"{address}/resolve/"):
                if repo in self.state.gated:
                    self._send(403, b"", {"X-Error-Code": "GatedRepo", "X-Repo-Commit": COMMIT})
                    return
                revision, file = path.removeprefix(f"{address}/resolve/").split("/", 1)
                commit = commit_of(revision)
                data = (self.state.files(repo, revision) or {}).get(file)
                if data is None:
                    self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
                    return
                self._send(200, data, {"ETag": f'"{_oid(data)}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"})
                return
        self._send(404, b"", {"X-Error-Code": "RepoNotFound"})

    def _json(self, content: object, status: int = 200) -> None:
        self._send(status, json.dumps(content).encode(), {"Content-Type": "application/json"})

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
        if self.command == "HEAD":
            return
        repo, _, file = self.path.strip("/").partition("/resolve/")
        cut = f"cut {repo}/{file.rpartition('/')[2]}"
        if {cut, f"always {cut}"} & self.state.trouble and status in (200, 206):
            self.state.trouble.discard(cut)
            self.state.cuts += 1
            self.wfile.write(data[: len(data) // 2])
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        self._write(data)

    def _write(self, data: bytes) -> None:
        """Send a body, and count what the client accepts of it: it may close the connection before the end."""
        try:
            for start in range(0, len(data), _PIECE):
                self.state.bytes_sent += self.wfile.write(data[start : start + _PIECE])
        except ConnectionError:
            self.close_connection = True


def _upload_mode(path: str) -> dict[str, Any]:
    mode = "lfs" if path.endswith(".safetensors") else "regular"
    return {"path": path, "uploadMode": mode, "shouldIgnore": False}


@cache
def _oid(data: bytes) -> str:
    return hashlib.sha1(data, usedforsecurity=False).hexdigest()
