"""Who may use the server: where an API key is set, every request must carry it, or the cookie that a login gave."""

from __future__ import annotations

from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from merlina.api import errors
from merlina.api.middleware.sessions import Sessions
from merlina.api.page import is_of_page
from merlina.errors import TooManyAttemptsError

_OPEN_PATHS = ("/health", "/login", "/session")
_DENIED = {"detail": "A valid API key is needed: send it as 'Authorization: Bearer …' or 'X-API-Key', or POST /login"}


class ApiKeyMiddleware:
    """Answers 401, or refuses the WebSocket, where key and session are missing or wrong; 429 to too many wrong keys."""

    def __init__(self, app: ASGIApp, sessions: Sessions) -> None:
        self._app = app
        self._sessions = sessions

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_open = scope["type"] == "lifespan" or scope["path"] in _OPEN_PATHS or is_of_page(scope["path"])
        try:
            is_admitted = is_open or self._sessions.admits(HTTPConnection(scope))
        except TooManyAttemptsError as error:
            # A WebSocket is refused with this response as well.
            await errors.response(error)(scope, receive, send)
            return
        if is_admitted:
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await refuse_websocket(receive, send, "API key needed")
        else:
            await JSONResponse(_DENIED, 401, headers={"WWW-Authenticate": "Bearer"})(scope, receive, send)


async def refuse_websocket(receive: Receive, send: Send, reason: str) -> None:
    """Ends a WebSocket before it is accepted; its client sees HTTP 403."""
    await receive()
    await send({"type": "websocket.close", "code": 1008, "reason": reason})
