"""Keeps web pages elsewhere from driving this server: by a name of theirs that leads here (DNS rebinding), by a form or
script of theirs (cross-site requests), or by a WebSocket of theirs.

A request is let in when its Host is this server's own, and, where it changes something, its Origin too: scheme, host
and port, as browsers compare them. What isn't a browser sends no Origin and is not held up.
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

_READING = ("GET", "HEAD", "OPTIONS")
_SHOWN = 100
_DEFAULT_PORTS = {"http": 80, "https": 443}
# Of the page that opens a WebSocket of the scheme.
_PAGE_SCHEMES = {"ws": "http", "wss": "https"}


@dataclass(frozen=True)
class OwnNames:
    """The host names this server goes by, and the origins whose pages may use it: `allowed` by setting, `*` for all."""

    hosts: frozenset[str]
    allowed: frozenset[str]
    public: frozenset[str]

    @classmethod
    def of(cls, settings: Settings) -> OwnNames:
        domain = urlsplit(settings.domain if "//" in settings.domain else f"//{settings.domain}")
        hosts = {"localhost", settings.host.lower(), socket.gethostname().lower()}
        allowed = {as_browsers_send(origin) for origin in settings.cors_origins}
        public = set()
        if domain.hostname:
            hosts.add(domain.hostname)
            # A proxy may speak TLS where this server does not; a DOMAIN without a scheme leaves open whether it does.
            schemes = [domain.scheme] if domain.scheme else ["http", "https"]
            public = {as_browsers_send(f"{scheme}://{domain.netloc}") for scheme in schemes}
        return cls(frozenset(hosts), frozenset(allowed), frozenset(public))

    def is_own_host(self, host: str) -> bool:
        """An address can't be pointed elsewhere, as a name can; so any address will do."""
        name = _host_name(host)
        return name in self.hosts or name.endswith(".localhost") or _is_address(name)

    def is_own_origin(self, origin: str, scheme: str, host: str) -> bool:
        """Whether pages of `origin` may change something: an allowed one, or the one that the request itself is for."""
        if "*" in self.allowed:
            return True
        sent = as_browsers_send(origin)
        own = as_browsers_send(f"{_PAGE_SCHEMES.get(scheme, scheme)}://{host}") if host else None
        return sent == own or sent in self.allowed or sent in self.public


class OwnNamesMiddleware:
    """Answers 403, or refuses the WebSocket, for a foreign Host or Origin."""

    def __init__(self, app: ASGIApp, names: OwnNames) -> None:
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
        if host and not self._names.is_own_host(host):
            return f"Host {host[:_SHOWN]!r} is not a name of this server; set DOMAIN to the address it is reached by"
        reads = scope["type"] == "http" and scope["method"] in _READING
        if origin is None or reads or self._names.is_own_origin(origin, scope["scheme"], host):
            return None
        return (
            f"Origin {origin[:_SHOWN]!r} may not use this server: set DOMAIN to the address it is reached by, "
            "or list the origin in CORS_ORIGINS"
        )


def as_browsers_send(origin: str) -> str:
    """An origin in lower case, without the default port of its scheme and what follows the host."""
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
