"""A real browser, where the machine has one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from functools import partial

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Error, Page, Playwright, Request, expect, sync_playwright

from tests.browser import looks
from tests.browser.looks import LookAt
from tests.harness import Server

# A tokenizer that is loaded for the first time takes seconds, more so beside other tests.
expect.set_options(timeout=60_000)
_NONE = "there is no Chromium here: the page was not tested. `playwright install chromium`, or the system's package"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Closed after each module: as long as Playwright runs, no other test can have an event loop."""
    with sync_playwright() as playwright:
        found = _launch(playwright)
        yield found
        found.close()


def _launch(playwright: Playwright) -> Browser:
    installed = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    # Chromium's sandbox needs rights that root in a container doesn't have.
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    try:
        return playwright.chromium.launch(executable_path=installed, args=arguments)
    except Error:
        pytest.skip(_NONE)


@pytest.fixture(scope="module")
def own_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Empty at first; the tests of a module go through it in order."""
    server = Server(tmp_path_factory.mktemp("page")).start()
    yield server
    server.stop()
    server.end_workers()


@pytest.fixture
def look_at(pytestconfig: pytest.Config) -> LookAt:
    return partial(looks.look_at, closely=bool(pytestconfig.getoption("--long")))


@pytest.fixture
def visit(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Opens pages that may ask nothing of any other origin, and must not complain on their console."""
    faults: list[str] = []
    opened: list[Page] = []

    def open_page(server: Server, path: str = "/", *, theme: str = "dark", width: int = 1280) -> Page:
        def hear(message: ConsoleMessage) -> None:
            # What can't be asked is told of by the page itself.
            if message.type == "error" and not message.text.startswith(
                ("Failed to load resource", "WebSocket connection")
            ):
                faults.append(message.text)

        def watch(request: Request) -> None:
            if not request.url.startswith((server.url, server.url.replace("http", "ws"), "data:", "blob:")):
                faults.append(f"asked {request.url}")

        context = browser.new_context(
            base_url=server.url,
            viewport={"width": width, "height": 900},
            color_scheme=theme,  # type: ignore[arg-type]
            permissions=["clipboard-read", "clipboard-write"],
        )
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.on("console", hear)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("request", watch)
        page.goto(path)
        opened.append(page)
        return page

    yield open_page
    for page in opened:
        page.context.close()
    assert faults == []
