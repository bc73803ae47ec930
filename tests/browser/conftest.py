"""Fixtures: a Chromium browser, and pages that fail the test on console errors."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from functools import partial

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Error, Page, Playwright, Request, expect, sync_playwright

from tests.browser import views
from tests.browser.views import CheckView
from tests.harness import Server

# Loading a tokenizer for the first time takes seconds, and longer next to other tests.
expect.set_options(timeout=60_000)
_NO_BROWSER = "Chromium is not installed, so the page is not tested: run `playwright install chromium`"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Closed after each module, because no other test can run an event loop while Playwright runs."""
    with sync_playwright() as playwright:
        browser = _launch(playwright)
        yield browser
        browser.close()


def _launch(playwright: Playwright) -> Browser:
    installed = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    # Chromium's sandbox does not work for root in a container.
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    try:
        return playwright.chromium.launch(executable_path=installed, args=arguments)
    except Error:
        pytest.skip(_NO_BROWSER)


@pytest.fixture(scope="module")
def own_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that is empty at first; the tests of a module use it in order."""
    server = Server(tmp_path_factory.mktemp("page")).start()
    yield server
    server.stop()
    server.end_workers()


@pytest.fixture
def check_view(pytestconfig: pytest.Config) -> CheckView:
    return partial(views.check_view, exhaustive=bool(pytestconfig.getoption("--long")))


@pytest.fixture
def visit(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Open pages that must not send requests to other origins or log errors to the console."""
    problems: list[str] = []
    opened: list[Page] = []

    def open_page(server: Server, path: str = "/", *, theme: str = "dark", width: int = 1280) -> Page:
        def on_console(message: ConsoleMessage) -> None:
            # The page itself shows that requests fail.
            if message.type == "error" and not message.text.startswith(
                ("Failed to load resource", "WebSocket connection")
            ):
                problems.append(message.text)

        def on_request(request: Request) -> None:
            if not request.url.startswith((server.url, server.url.replace("http", "ws"), "data:", "blob:")):
                problems.append(f"request to {request.url}")

        context = browser.new_context(
            base_url=server.url,
            viewport={"width": width, "height": 900},
            color_scheme=theme,  # type: ignore[arg-type]
            permissions=["clipboard-read", "clipboard-write"],
        )
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.on("console", on_console)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", on_request)
        page.goto(path)
        opened.append(page)
        return page

    yield open_page
    for page in opened:
        page.context.close()
    assert problems == []
