"""Who may use the server: where an API key is set, every request must carry it, or the cookie that a login gave."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.requests import cookie_parser
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from merlina.api.page import is_of_page

SESSION_COOKIE = "merlina_session"
SESSION_SECONDS = 30 * 24 * 3600
_OPEN_PATHS = ("/health", "/login", "/session")
_DENIED = {"detail": "A valid API key is needed: send it as 'Authorization: Bearer …' or 'X-API-Key', or POST /login"}


@dataclass(frozen=True)
class Sessions:
    """Signed cookies that stand for the API key; changing the key ends them all."""

    key: bytes

    def is_key(self, given: str) -> bool:
        """Compares in constant time."""
        return secrets.compare_digest(given.encode("utf-8", "replace"), self.key)

    def new(self) -> str:
        expires = str(int(time.time()) + SESSION_SECONDS)
        return f"{expires}.{self._sign(expires)}"

    def is_valid(self, cookie: str) -> bool:
        expires, _, signature = cookie.partition(".")
        signed = secrets.compare_digest(signature.encode("utf-8", "replace"), self._sign(expires).encode())
        return signed and expires.isdigit() and int(expires) > time.time()

    def admits(self, headers: Headers) -> bool:
        """Whether a request with these headers carries the key or a session."""
        scheme, _, token = headers.get("authorization", "").partition(" ")
        given = headers.get("x-api-key") or (token.strip() if scheme.lower() == "bearer" else "")
        if given:
            return self.is_key(given)
        return self.is_valid(cookie_parser(headers.get("cookie", "")).get(SESSION_COOKIE, ""))

    def _sign(self, expires: str) -> str:
        return hmac.new(self.key, f"session until {expires}".encode("utf-8", "replace"), hashlib.sha256).hexdigest()


class ApiKeyMiddleware:
    """Answers 401, or refuses the WebSocket, where key and session are missing or wrong."""

    def __init__(self, app: ASGIApp, sessions: Sessions) -> None:
        self._app = app
        self._sessions = sessions

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_open = scope["type"] == "lifespan" or scope["path"] in _OPEN_PATHS or is_of_page(scope["path"])
        if is_open or self._sessions.admits(Headers(scope=scope)):
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await refuse_websocket(receive, send, "API key needed")
        else:
            await JSONResponse(_DENIED, 401, headers={"WWW-Authenticate": "Bearer"})(scope, receive, send)


async def refuse_websocket(receive: Receive, send: Send, reason: str) -> None:
    """Ends a WebSocket before it is accepted; its client sees HTTP 403."""
    await receive()
    await send({"type": "websocket.close", "code": 1008, "reason": reason})
