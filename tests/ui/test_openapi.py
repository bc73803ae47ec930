"""The page is built from the API as it is."""

from __future__ import annotations

from tests.ui.openapi import FILE, described


def test_the_page_knows_the_api_as_it_is_now() -> None:
    assert FILE.read_text() == described(), "the API has moved on: python -m tests.ui.openapi, then build the page"
