"""Serves the API and the page below a path of a shared host name, such as https://tools.example.com/merlina/.

A proxy may remove that path from the requests it forwards, or keep it. The page works in both cases (`api.page`). This
middleware removes a path that was kept, so that the routes do not depend on it.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette.types import ASGIApp, Receive, Scope, Send

from merlina.settings import Settings


def sub_path_of(settings: Settings) -> str:
    """Return the path in DOMAIN without its last slash: `/merlina`, or an empty string."""
    return urlsplit(settings.domain).path.rstrip("/") if "//" in settings.domain else ""


class SubPathMiddleware:
    """Removes `sub_path` from the beginning of a request's path if a proxy has kept it."""

    def __init__(self, app: ASGIApp, sub_path: str) -> None:
        self._app = app
        self._sub_path = sub_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan" and _is_below(scope["path"], self._sub_path):
            scope = {
                **scope,
                "path": scope["path"].removeprefix(self._sub_path) or "/",
                "raw_path": scope["raw_path"].removeprefix(self._sub_path.encode()) or b"/",
            }
        await self._app(scope, receive, send)


def _is_below(path: str, sub_path: str) -> bool:
    return path == sub_path or path.startswith(f"{sub_path}/")
