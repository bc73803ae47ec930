"""Protection against web pages of other sites: DNS rebinding, cross-site requests and cross-site WebSockets.

A request is accepted if its Host is a name of this server and, unless it only reads, if its Origin (scheme, host and
port) is the server's own as well. Programs other than browsers send no Origin and are not affected.
"""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from merlina.api.middleware.api_key import refuse_websocket
from merlina.settings import Settings

_READ_METHODS = ("GET", "HEAD", "OPTIONS")
_MAX_SHOWN = 100
_DEFAULT_PORTS = {"http": 80, "https": 443}
# The scheme of a page that opens a WebSocket with this scheme.
_PAGE_SCHEMES = {"ws": "http", "wss": "https"}


@dataclass(frozen=True)
class ServerNames:
    """The host names of this server and the origins of pages that may use it; `allowed` may contain `*` for all."""

    hosts: frozenset[str]
    allowed: frozenset[str]
    public: frozenset[str]

    @classmethod
    def of(cls, settings: Settings) -> ServerNames:
        domain = urlsplit(settings.domain if "//" in settings.domain else f"//{settings.domain}")
        hosts = {"localhost", settings.host.lower(), socket.gethostname().lower()}
        allowed = {normalize_origin(origin) for origin in settings.cors_origins}
        public = set()
        if domain.hostname:
            hosts.add(domain.hostname)
            # A proxy may terminate TLS; without a scheme in DOMAIN, both are possible.
            schemes = [domain.scheme] if domain.scheme else ["http", "https"]
            public = {normalize_origin(f"{scheme}://{domain.netloc}") for scheme in schemes}
        return cls(frozenset(hosts), frozenset(allowed), frozenset(public))

    def is_known_host(self, host: str) -> bool:
        """Return whether the Host is accepted: any IP address is, since DNS rebinding needs a name."""
        name = _host_name(host)
        return name in self.hosts or name.endswith(".localhost") or _is_address(name)

    def is_allowed_origin(self, origin: str, scheme: str, host: str) -> bool:
        """Return whether pages of `origin` may change something: allowed origins and the server's own."""
        if "*" in self.allowed:
            return True
        sent = normalize_origin(origin)
        server_origin = normalize_origin(f"{_PAGE_SCHEMES.get(scheme, scheme)}://{host}") if host else None
        return sent == server_origin or sent in self.allowed or sent in self.public


class OriginMiddleware:
    """Responds with 403 to requests and WebSockets with a foreign Host or Origin."""

    def __init__(self, app: ASGIApp, names: ServerNames) -> None:
        self._app = app
        self._names = names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        problem = None if scope["type"] == "lifespan" else self._problem(scope)
        if problem is None:
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await refuse_websocket(receive, send, "foreign Host or Origin")
        else:
            await JSONResponse({"detail": problem}, 403)(scope, receive, send)

    def _problem(self, scope: Scope) -> str | None:
        headers = Headers(scope=scope)
        host, origin = headers.get("host", ""), headers.get("origin")
        if host and not self._names.is_known_host(host):
            return f"Host {host[:_MAX_SHOWN]!r} is not a name of this server; set DOMAIN to the server's public address"
        reads = scope["type"] == "http" and scope["method"] in _READ_METHODS
        if origin is None or reads or self._names.is_allowed_origin(origin, scope["scheme"], host):
            return None
        return (
            f"Origin {origin[:_MAX_SHOWN]!r} may not use this server: set DOMAIN to the server's public address, "
            "or list the origin in CORS_ORIGINS"
        )


def normalize_origin(origin: str) -> str:
    """Return an origin as browsers send it: in lower case, without a default port and without a path."""
    text = origin.strip().lower()
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        return text
    if not parts.scheme or not parts.hostname:
        return text
    name = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{name}" + ("" if port in (None, _DEFAULT_PORTS.get(parts.scheme)) else f":{port}")


def _host_name(host: str) -> str:
    try:
        return (urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:
        return ""


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
