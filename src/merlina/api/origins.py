"""Keeps web pages elsewhere from driving this server: by a name of theirs that leads here (DNS rebinding), by a form or
script of theirs (cross-site requests), or by a WebSocket of theirs.

A request is let in when its Host is this server's own, and, where it changes something, its Origin too. What isn't a
browser sends no Origin and is not held up.
"""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from merlina.api.security import refuse_websocket
from merlina.settings import Settings

_READING = ("GET", "HEAD", "OPTIONS")
_SHOWN = 100


@dataclass(frozen=True)
class OwnNames:
    """The host names this server goes by, and the origins whose pages may use it."""

    hosts: frozenset[str]
    origins: frozenset[str]

    @classmethod
    def of(cls, settings: Settings) -> OwnNames:
        domain = urlsplit(settings.domain if "//" in settings.domain else f"//{settings.domain}")
        hosts = {"localhost", settings.host.lower(), socket.gethostname().lower()}
        origins = {origin.rstrip("/").lower() for origin in settings.cors_origins}
        if domain.hostname:
            hosts.add(domain.hostname)
            origins |= {f"{scheme}://{domain.netloc.lower()}" for scheme in ("http", "https")}
        return cls(frozenset(hosts), frozenset(origins))

    def is_own_host(self, host: str) -> bool:
        """An address can't be pointed elsewhere, as a name can; so any address will do."""
        name = _host_name(host)
        return name in self.hosts or name.endswith(".localhost") or _is_address(name)

    def is_own_origin(self, origin: str, host: str) -> bool:
        origin = origin.lower()
        return "*" in self.origins or origin in self.origins or origin.partition("://")[2] == host.lower() != ""


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
        if origin is None or reads or self._names.is_own_origin(origin, host):
            return None
        return f"Origin {origin[:_SHOWN]!r} may not use this server; CORS_ORIGINS lists those that may"


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
