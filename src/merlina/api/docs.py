"""The API's documentation in a browser. It names its description relative to itself, and so works below a sub-path."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.openapi.docs import get_redoc_html, get_swagger_ui_html
from fastapi.responses import HTMLResponse

_DESCRIPTION = "openapi.json"

router = APIRouter(include_in_schema=False)


@router.get("/api/docs")
def swagger_ui() -> HTMLResponse:
    """The API's documentation, to try out."""
    return get_swagger_ui_html(openapi_url=_DESCRIPTION, title="Merlina: Swagger UI")


@router.get("/api/redoc")
def redoc() -> HTMLResponse:
    """The API's documentation, to read."""
    return get_redoc_html(openapi_url=_DESCRIPTION, title="Merlina: ReDoc")
