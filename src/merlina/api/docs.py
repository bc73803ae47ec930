"""Interactive API documentation. It loads the OpenAPI description by a relative path, so it works below a sub-path."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.openapi.docs import get_redoc_html, get_swagger_ui_html
from fastapi.responses import HTMLResponse

_DESCRIPTION = "openapi.json"

router = APIRouter(include_in_schema=False)


@router.get("/api/docs")
def swagger_ui() -> HTMLResponse:
    """Interactive API documentation (Swagger UI)."""
    return get_swagger_ui_html(openapi_url=_DESCRIPTION, title="Merlina: Swagger UI")


@router.get("/api/redoc")
def redoc() -> HTMLResponse:
    """API reference (ReDoc)."""
    return get_redoc_html(openapi_url=_DESCRIPTION, title="Merlina: ReDoc")
