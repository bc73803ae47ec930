"""The web page: the files that `ui/` is built into, and what browsers may do with them."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import FileResponse, HTMLResponse, PlainTextResponse, Response
from starlette.middleware.gzip import GZipMiddleware
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from merlina.samples import PAIRS

STATIC = Path(__file__).parent / "static"
_ASSETS = "/assets"
# For those who come without pairs of their own.
_SAMPLE_PAIRS = f"{_ASSETS}/sample_pairs.jsonl"
_VIEWS = ("/", "/new", "/runs", "/runs/{run}", "/runs/{run}/chat", "/compare", "/machine")
# Nothing but our own files and our own API; nothing inline, no frame around the page.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; font-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    # The files it names change their names with their content; this one must be asked for each time.
    "Cache-Control": "no-cache",
}

router = APIRouter(include_in_schema=False)


def install(app: FastAPI) -> None:
    """Adds the page and its files."""
    app.include_router(router)
    app.mount(_ASSETS, GZipMiddleware(_Assets(directory=STATIC / "assets", check_dir=False)))


def is_of_page(path: str) -> bool:
    """Whether this is the page itself or one of its files, which hold nothing that a stranger may not see."""
    return path in _VIEWS or path.startswith((f"{_ASSETS}/", "/runs/"))


def wants_page(request: Request) -> bool:
    """Whether a browser was sent to an address, rather than a program asking for it."""
    return request.method == "GET" and "text/html" in request.headers.get("accept", "")


def nowhere(request: Request) -> Response:
    """Return the page, which says that there is nothing at its address."""
    return _page(request, 404)


def _index(request: Request) -> Response:
    return _page(request, 200)


@router.get(_SAMPLE_PAIRS)
def _sample_pairs() -> Response:
    return FileResponse(PAIRS, media_type="application/jsonl")


def _page(request: Request, status: int) -> Response:
    index = STATIC / "index.html"
    if not index.is_file():
        return PlainTextResponse("The web page was not built. `pip install .` builds it; the API is at /api/docs.", 503)
    html = index.read_text().replace('"./', f'"{_way_to_root(request)}')
    return HTMLResponse(html, status, headers=_HEADERS)


def _way_to_root(request: Request) -> str:
    """Return the relative path from the requested address to the server's root.

    The page names its files relative to itself, so that it also works below a path that a proxy removes before it
    forwards a request: at `/runs/job_1`, which a browser may know as `/merlina/runs/job_1`, they are in `../assets`.
    """
    path = request.scope.get("raw_path") or request.url.path.encode()
    return "../" * (path.count(b"/") - 1) or "./"


for _view in _VIEWS:
    router.add_api_route(_view, _index)


class _Assets(StaticFiles):
    """Files whose names carry a hash of their content never change; the few others are asked for each time."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        is_named_by_content = "-" in Path(path).stem
        response.headers["Cache-Control"] = "public, max-age=31536000, immutable" if is_named_by_content else "no-cache"
        response.headers["X-Content-Type-Options"] = "nosniff"
        return response
