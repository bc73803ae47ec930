"""A local host of data files: HTTP, and what reads use of the protocols of S3 and of Google Cloud Storage.

Path of a file `pairs/a.jsonl`: `/pairs/a.jsonl` for HTTP and, with `pairs` as the bucket, for S3;
`/storage/v1/b/pairs/o/a.jsonl` for Google Cloud Storage.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

_DATE = "Wed, 01 Jan 2025 00:00:{:02} GMT"


@dataclass
class DataHost:
    """State of the host: files by path without the first slash, and the requests that it received.

    `redirects` and `statuses` are by path. `no_ranges`: it sends whole files only. `no_size`: it does not state sizes.
    `cuts` is the number of bodies that it breaks off halfway, of those of at least `cut_above` bytes.
    `busy` is the number of requests that it refuses for the time being, as S3 does.
    `replace_after`: after this number of bodies, all files have another version, in `headers_of_version`. Requests for
    the version before are refused, unless it `ignores_conditions`.
    `hangs`: it responds to nothing. `drips`: it sends a byte of a body ten times a second, and `dripping` is set.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    port: int = 0
    redirects: dict[str, str] = field(default_factory=dict)
    statuses: dict[str, int] = field(default_factory=dict)
    no_ranges: bool = False
    no_size: bool = False
    cuts: int = 0
    cut_above: int = 0
    replace_after: int | None = None
    headers_of_version: frozenset[str] = frozenset({"Last-Modified", "ETag"})
    ignores_conditions: bool = False
    weak_etags: bool = False
    busy: int = 0
    hangs: bool = False
    drips: bool = False
    dripping: threading.Event = field(default_factory=threading.Event)
    hanging: int = 0
    bodies: list[tuple[str, str | None]] = field(default_factory=list)
    """Path and range of each body that was sent."""
    asked: list[str] = field(default_factory=list)
    """Methods and addresses of all requests."""
    authorizations: list[str] = field(default_factory=list)
    bytes_sent: int = 0
    released: threading.Event = field(default_factory=threading.Event)

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def version(self) -> int:
        return int(self.replace_after is not None and len(self.bodies) > self.replace_after)


@contextmanager
def data_host(files: dict[str, bytes] | None = None) -> Iterator[DataHost]:
    host = DataHost(files or {})
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(host))
    server.daemon_threads = True
    host.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield host
    finally:
        host.released.set()
        server.shutdown()
        server.server_close()
        thread.join()


def _handler(host: DataHost) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self._respond()

        def do_GET(self) -> None:
            self._respond()

        def _respond(self) -> None:
            if host.hangs:
                host.hanging += 1
                host.released.wait(60)
                self.close_connection = True
                return
            host.asked.append(f"{self.command} {self.path}")
            host.authorizations.append(self.headers.get("Authorization", ""))
            parts = urlsplit(self.path)
            path, query = unquote(parts.path).lstrip("/"), parse_qs(parts.query)
            if host.busy > 0:
                host.busy -= 1
                self._send(503, b"<Error><Code>SlowDown</Code><Message>Reduce your request rate.</Message></Error>")
            elif path in host.redirects:
                self._send(302, b"", {"Location": host.redirects[path]})
            elif path in host.statuses:
                self._send(host.statuses[path], b"")
            elif found := re.fullmatch(r"(?:download/)?storage/v1/b/([^/]+)/o/(.+)", path):
                self._respond_as_google(f"{found[1]}/{found[2]}", query)
            elif "list-type" in query:
                self._send(200, b"<ListBucketResult><KeyCount>0</KeyCount></ListBucketResult>")
            else:
                self._send_file(path)

        def _respond_as_google(self, path: str, query: dict[str, list[str]]) -> None:
            if query.get("alt") == ["media"] or path not in host.files:
                self._send_file(path, query.get("generation", [None])[0])
                return
            bucket, _, name = path.partition("/")
            link = f"{host.origin}/download/storage/v1/b/{bucket}/o/{name}?alt=media"
            facts = {"kind": "storage#object", "bucket": bucket, "name": name, "mediaLink": link}
            facts |= {
                "size": str(len(host.files[path])),
                "generation": str(host.version + 1),
                "etag": str(host.version),
            }
            self._send(200, json.dumps(facts).encode(), {"Content-Type": "application/json"})

        def _send_file(self, path: str, generation: str | None = None) -> None:
            content = host.files.get(path)
            if content is None or generation not in (None, str(host.version + 1)):
                self._send(404, b"")
                return
            versions = {
                name: host.version if name in host.headers_of_version else 0 for name in ("Last-Modified", "ETag")
            }
            headers = {
                "Last-Modified": _DATE.format(versions["Last-Modified"]),
                "ETag": f'{"W/" * host.weak_etags}"{versions["ETag"]}"',
            }
            conditions = (("If-Match", "ETag"), ("If-Unmodified-Since", "Last-Modified"))
            differ = any(self.headers.get(name, headers[of]) != headers[of] for name, of in conditions)
            names_weak = self.headers.get("If-Match", "").startswith("W/")
            if (differ or names_weak) and not host.ignores_conditions:
                text = b"At least one of the pre-conditions you specified did not hold"
                self._send(412, b"<Error><Code>PreconditionFailed</Code><Message>" + text + b"</Message></Error>")
                return
            wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            if wanted is None or host.no_ranges:
                self._send(200, content, headers, path)
                return
            begin, end = int(wanted[1]), min(int(wanted[2]) + 1, len(content))
            headers["Content-Range"] = f"bytes {begin}-{end - 1}/{len(content)}"
            self._send(206, content[begin:end], headers, path)

        def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None, path: str = "") -> None:
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            if host.no_size:
                self.close_connection = True
                self.send_header("Connection", "close")
            else:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "HEAD":
                return
            if path:
                host.bodies.append((path, self.headers.get("Range")))
            if path and host.cuts > 0 and len(body) >= host.cut_above:
                host.cuts -= 1
                body = body[: len(body) // 2]
                self.close_connection = True
            try:
                while path and host.drips and not host.released.wait(0.1):
                    self.wfile.write(body[:1])
                    body = body[1:]
                    host.dripping.set()
                for begin in range(0, len(body), 65536):
                    self.wfile.write(body[begin : begin + 65536])
                    host.bytes_sent += len(body[begin : begin + 65536])
            except OSError:  # the client has read enough
                self.close_connection = True

    return Handler
