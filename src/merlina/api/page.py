"""The web page: the files built from `ui/`, and their security headers."""

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
# Sample data for users without pairs of their own.
_SAMPLE_PAIRS = f"{_ASSETS}/sample_pairs.jsonl"
_VIEWS = ("/", "/new", "/runs", "/runs/{run}", "/runs/{run}/chat", "/compare", "/machine")
# Allow only the server's own files and API, nothing inline, and no embedding in frames.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; font-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    # Browsers must revalidate the page; the names of the files it loads change with their content.
    "Cache-Control": "no-cache",
}

router = APIRouter(include_in_schema=False)


def install(app: FastAPI) -> None:
    """Add the page and its files to the app."""
    app.include_router(router)
    app.mount(_ASSETS, GZipMiddleware(_Assets(directory=STATIC / "assets", check_dir=False)))


def is_page_path(path: str) -> bool:
    """Return whether the path is that of the page or one of its files, which are public."""
    return path in _VIEWS or path.startswith((f"{_ASSETS}/", "/runs/"))


def wants_page(request: Request) -> bool:
    """Return whether a browser navigates to the address, in contrast to a program that calls the API."""
    return request.method == "GET" and "text/html" in request.headers.get("accept", "")


def not_found(request: Request) -> Response:
    """Return the page with status 404; it then shows that its address does not exist."""
    return _page(request, 404)


def _index(request: Request) -> Response:
    return _page(request, 200)


@router.get(_SAMPLE_PAIRS)
def _sample_pairs() -> Response:
    return FileResponse(PAIRS, media_type="application/jsonl")


def _page(request: Request, status: int) -> Response:
    index = STATIC / "index.html"
    if not index.is_file():
        return PlainTextResponse(
            "The web page has not been built. Run `pip install .` to build it; the API is documented at /api/docs.", 503
        )
    html = index.read_text().replace('"./', f'"{_path_to_root(request)}')
    return HTMLResponse(html, status, headers=_HEADERS)


def _path_to_root(request: Request) -> str:
    """Return the relative path from the requested address to the server's root.

    The page refers to its files by relative paths, so that it also works if a proxy removes a path prefix: the page
    at `/runs/job_1`, which a browser may know as `/merlina/runs/job_1`, loads its files from `../assets`.
    """
    path = request.scope.get("raw_path") or request.url.path.encode()
    return "../" * (path.count(b"/") - 1) or "./"


for _view in _VIEWS:
    router.add_api_route(_view, _index)


class _Assets(StaticFiles):
    """Serves files. Browsers cache files that are named by a hash of their content and revalidate the others."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        is_named_by_content = "-" in Path(path).stem
        response.headers["Cache-Control"] = "public, max-age=31536000, immutable" if is_named_by_content else "no-cache"
        response.headers["X-Content-Type-Options"] = "nosniff"
        return response
