"""Access control: if an API key is set, every request needs the key or the session cookie of a login."""

from __future__ import annotations

from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from merlina.api import error_responses
from merlina.api.middleware.sessions import Sessions
from merlina.api.page import is_page_path
from merlina.errors import TooManyAttemptsError

_OPEN_PATHS = ("/health", "/login", "/session")
_DENIED = {"detail": "A valid API key is required: send it as 'Authorization: Bearer …' or 'X-API-Key', or POST /login"}


class ApiKeyMiddleware:
    """Responds with 401 to requests without a valid key or session, and with 429 after too many wrong keys."""

    def __init__(self, app: ASGIApp, sessions: Sessions) -> None:
        self._app = app
        self._sessions = sessions

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_open = scope["type"] == "lifespan" or scope["path"] in _OPEN_PATHS or is_page_path(scope["path"])
        try:
            is_authorized = is_open or self._sessions.is_authorized(HTTPConnection(scope))
        except TooManyAttemptsError as error:
            # The same response also refuses a WebSocket.
            await error_responses.error_response(error)(scope, receive, send)
            return
        if is_authorized:
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await refuse_websocket(receive, send, "API key required")
        else:
            await JSONResponse(_DENIED, 401, headers={"WWW-Authenticate": "Bearer"})(scope, receive, send)


async def refuse_websocket(receive: Receive, send: Send, reason: str) -> None:
    """Close a WebSocket before it is accepted; its client receives HTTP 403."""
    await receive()
    await send({"type": "websocket.close", "code": 1008, "reason": reason})
