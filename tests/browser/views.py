"""Checks of every view: no accessibility violations, no horizontal overflow, and a screenshot.

With `--long` in both themes and widths; otherwise in the light theme at the narrow width.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from playwright.sync_api import Page

SCREENSHOTS = Path(__file__).parents[2] / "build/screenshots"
_AXE = Path(__file__).parents[2] / "ui/node_modules/axe-core/axe.min.js"
_SIZES = (360, 1920)
_THEMES = ("light", "dark")
_END_ANIMATIONS = """document.getAnimations()
  .filter(each => Number.isFinite(each.effect.getComputedTiming().endTime))
  .forEach(each => each.finish())"""
CheckView = Callable[[Page, str], None]


def check_view(page: Page, name: str, *, exhaustive: bool) -> None:
    """Check a view and write its screenshots; `exhaustive`: in both themes and widths."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    for theme in _THEMES if exhaustive else _THEMES[:1]:
        page.emulate_media(color_scheme=theme)  # type: ignore[arg-type]
        for width in _SIZES if exhaustive else _SIZES[:1]:
            page.set_viewport_size({"width": width, "height": 900})
            page.wait_for_timeout(150)
            assert_no_overflow(page)
            page.screenshot(path=SCREENSHOTS / f"{name}-{theme}-{width}.png", full_page=True)
        found = violations(page)
        assert not found, f"{name}, {theme}:\n" + "\n".join(found)
    page.set_viewport_size({"width": 1280, "height": 900})


def assert_no_overflow(page: Page) -> None:
    overflow = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert overflow <= 0, f"{page.url} is {overflow} px wider than its window"


def violations(page: Page) -> list[str]:
    """Return the violations that axe finds once the finite animations of the page have ended.

    The debugger injects axe, because the page's security policy forbids scripts of others.
    """
    if not page.evaluate("typeof axe !== 'undefined'"):
        page.evaluate(_AXE.read_text())
    page.evaluate(_END_ANIMATIONS)
    # All rules run. What axe would list of elements without a violation takes most of its time.
    found = page.evaluate("axe.run({resultTypes: ['violations'], selectors: false})")["violations"]
    return [
        f"{each['id']}: {each['nodes'][0]['html'][:200]} {each['nodes'][0]['failureSummary'][:300]}" for each in found
    ]
