"""The page below a path of a shared host name, behind a proxy that removes the path."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from playwright.sync_api import Page, expect

from tests.browser.looks import LookAt
from tests.harness import Server, pairs_file, training_config
from tests.sub_path_proxy import below


def test_the_page_works_below_a_path(server: Server, visit: Callable[..., Page]) -> None:
    with below("/tools/merlina", server.port) as port:
        shown = SimpleNamespace(url=f"http://127.0.0.1:{port}/tools/merlina")
        page = visit(shown, f"{shown.url}/new")
        page.get_by_role("button", name=re.compile("sample")).click()
        expect(page.get_by_role("region", name="The row as it is")).to_be_visible()
        page.get_by_role("link", name="Machine").click()
        page.wait_for_url(f"{shown.url}/machine")
        page.reload()
        expect(page.get_by_role("meter", name="RAM")).to_be_visible()
        page.goto(f"{shown.url}/no/such/page")
        page.get_by_role("link", name="All runs", exact=True).click()
        page.wait_for_url(f"{shown.url}/")


@pytest.mark.long
def test_every_view_works_below_a_path(
    own_server: Server, tiny_model: Path, visit: Callable[..., Page], look_at: LookAt
) -> None:
    config = training_config(tiny_model, pairs_file(own_server.root / "pairs.jsonl"), "below", num_epochs=40)
    job = own_server.train(config)
    with below("/tools/merlina", own_server.port) as port:
        shown = SimpleNamespace(url=f"http://127.0.0.1:{port}/tools/merlina")
        page = visit(shown, f"{shown.url}/")
        page.get_by_role("link", name="below").click()
        page.wait_for_url(f"{shown.url}/runs/{job}")
        expect(page.get_by_role("figure").first).to_be_visible()
        page.reload()
        expect(page.get_by_text("The model is ready")).to_be_visible(timeout=120_000)
        page.get_by_role("link", name="Chat").click()
        page.wait_for_url(f"{shown.url}/runs/{job}/chat")
        page.reload()
        expect(page.get_by_label("Your question")).to_be_visible()
        page.get_by_role("link", name="New run").click()
        page.wait_for_url(f"{shown.url}/new")
        page.get_by_role("button", name=re.compile("sample")).click()
        expect(page.get_by_role("region", name="The row as it is")).to_be_visible()
        look_at(page, "below-a-path")
        page.go_back()
        page.wait_for_url(f"{shown.url}/runs/{job}/chat")
        page.goto(f"{shown.url}/no/such/page")
        expect(page.get_by_role("heading", name="Nothing is here")).to_be_visible()
        page.get_by_role("link", name="All runs", exact=True).click()
        page.wait_for_url(f"{shown.url}/")
