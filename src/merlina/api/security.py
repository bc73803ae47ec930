"""Who may use the server: where an API key is set, every request must carry it."""

from __future__ import annotations

import secrets

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

_OPEN_PATHS = ("/health",)
_DENIED = {"detail": "A valid API key is needed: send it as 'Authorization: Bearer …' or 'X-API-Key'"}


class ApiKeyMiddleware:
    """Answers 401, or refuses the WebSocket, where the key is missing or wrong. `/health` is open to all."""

    def __init__(self, app: ASGIApp, key: str) -> None:
        self._app = app
        self._key = key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or scope["path"] in _OPEN_PATHS or self._is_allowed(Headers(scope=scope)):
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008, "reason": "API key needed"})
        else:
            await JSONResponse(_DENIED, 401, headers={"WWW-Authenticate": "Bearer"})(scope, receive, send)

    def _is_allowed(self, headers: Headers) -> bool:
        scheme, _, token = headers.get("authorization", "").partition(" ")
        given = headers.get("x-api-key") or (token.strip() if scheme.lower() == "bearer" else "")
        return secrets.compare_digest(given.encode(), self._key)
