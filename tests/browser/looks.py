"""What is asked of every view: nothing for axe to find, nothing wider than the window, a picture to look at.

In both themes and both widths with `--long`; otherwise in one of each, where most can go wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from playwright.sync_api import Page

SCREENSHOTS = Path(__file__).parents[2] / "build/screenshots"
_AXE = Path(__file__).parents[2] / "ui/node_modules/axe-core/axe.min.js"
_SIZES = (360, 1920)
_THEMES = ("light", "dark")
LookAt = Callable[[Page, str], None]


def look_at(page: Page, name: str, *, closely: bool) -> None:
    """`closely`: in both themes and both widths. The page's own policy forbids axe, so it comes by the debugger."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    for theme in _THEMES if closely else _THEMES[:1]:
        page.emulate_media(color_scheme=theme)  # type: ignore[arg-type]
        for width in _SIZES if closely else _SIZES[:1]:
            page.set_viewport_size({"width": width, "height": 900})
            page.wait_for_timeout(150)
            assert_nothing_is_wider(page)
            page.screenshot(path=SCREENSHOTS / f"{name}-{theme}-{width}.png", full_page=True)
        found = violations(page)
        assert not found, f"{name}, {theme}:\n" + "\n".join(found)
    page.set_viewport_size({"width": 1280, "height": 900})


def assert_nothing_is_wider(page: Page) -> None:
    wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert wide <= 0, f"{page.url} is {wide} px wider than its window"


def violations(page: Page) -> list[str]:
    if not page.evaluate("typeof axe !== 'undefined'"):
        page.evaluate(_AXE.read_text())
    found = page.evaluate("axe.run()")["violations"]
    return [
        f"{each['id']}: {each['nodes'][0]['html'][:200]} {each['nodes'][0]['failureSummary'][:300]}" for each in found
    ]
