"""The page behind a proxy that removes a path prefix."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from playwright.sync_api import Page, expect

from tests.browser.views import CheckView
from tests.harness import Server, pairs_file, training_config
from tests.sub_path_proxy import below

pytestmark = pytest.mark.slow


def test_the_page_works_below_a_path(server: Server, visit: Callable[..., Page]) -> None:
    with below("/tools/merlina", server.port) as port:
        site = SimpleNamespace(url=f"http://127.0.0.1:{port}/tools/merlina")
        page = visit(site, f"{site.url}/new")
        page.get_by_role("button", name=re.compile("sample")).click()
        expect(page.get_by_role("region", name="Original row")).to_be_visible()
        page.get_by_role("link", name="Machine").click()
        page.wait_for_url(f"{site.url}/machine")
        page.reload()
        expect(page.get_by_role("meter", name="RAM")).to_be_visible()
        page.goto(f"{site.url}/no/such/page")
        page.get_by_role("link", name="all runs", exact=True).click()
        page.wait_for_url(f"{site.url}/")


@pytest.mark.long
def test_every_view_works_below_a_path(
    own_server: Server, tiny_model: Path, visit: Callable[..., Page], check_view: CheckView
) -> None:
    config = training_config(tiny_model, pairs_file(own_server.root / "pairs.jsonl"), "below", num_epochs=40)
    job = own_server.train(config)
    with below("/tools/merlina", own_server.port) as port:
        site = SimpleNamespace(url=f"http://127.0.0.1:{port}/tools/merlina")
        page = visit(site, f"{site.url}/")
        page.get_by_role("link", name="below").click()
        page.wait_for_url(f"{site.url}/runs/{job}")
        expect(page.get_by_role("figure").first).to_be_visible()
        page.reload()
        expect(page.get_by_text("Model ready")).to_be_visible(timeout=120_000)
        page.get_by_role("link", name="Chat").click()
        page.wait_for_url(f"{site.url}/runs/{job}/chat")
        page.reload()
        expect(page.get_by_label("Message", exact=True)).to_be_visible()
        page.get_by_role("link", name="New run").click()
        page.wait_for_url(f"{site.url}/new")
        page.get_by_role("button", name=re.compile("sample")).click()
        expect(page.get_by_role("region", name="Original row")).to_be_visible()
        check_view(page, "below-a-path")
        page.go_back()
        page.wait_for_url(f"{site.url}/runs/{job}/chat")
        page.goto(f"{site.url}/no/such/page")
        expect(page.get_by_role("heading", name="Page not found")).to_be_visible()
        page.get_by_role("link", name="all runs", exact=True).click()
        page.wait_for_url(f"{site.url}/")
