"""The page is built from the current OpenAPI schema."""

from __future__ import annotations

from tests.ui.openapi import FILE, openapi_schema


def test_the_stored_schema_matches_the_api() -> None:
    assert FILE.read_text() == openapi_schema(), "run `python -m tests.ui.openapi`, then build the page"
