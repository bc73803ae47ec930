"""The page used by keyboard alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.harness import Server, pairs_file

pytestmark = pytest.mark.slow

_MAX_STOPS = 120
_NAME = """() => {
  const at = document.activeElement;
  const labels = at.labels ? [...at.labels].map((label) => label.innerText).join(' ') : '';
  const own = at.matches('a, button, summary') ? at.innerText : '';
  return `${at.getAttribute('aria-label') ?? ''} ${labels} ${own}`;
}"""


def tab_to(page: Page, name: str) -> None:
    for _ in range(_MAX_STOPS):
        page.keyboard.press("Tab")
        if name in page.evaluate(_NAME):
            return
    raise AssertionError(f"Tab does not reach {name}")


def fill_in(page: Page, server: Server, model: Path) -> None:
    """Fill in the form of a new run."""
    rows = [json.loads(line) for line in pairs_file(server.root / "keyed.jsonl").read_text().splitlines()]
    file = server.root / "renamed.jsonl"
    file.write_text("\n".join(json.dumps({**row, "ask": row["prompt"], "prompt": "?"}) for row in rows))
    page.on("filechooser", lambda chooser: chooser.set_files(file))
    tab_to(page, "Base model")
    page.keyboard.type(str(model))
    tab_to(page, "Drop a file here")
    page.keyboard.press("Space")
    expect(page.get_by_label("Chosen answer")).to_have_value("chosen")
    tab_to(page, "Prompt")
    page.keyboard.type("ask")
    tab_to(page, "Chat format")
    page.keyboard.type("ChatML")
    expect(page.get_by_role("region", name="Formatted pair")).to_contain_text("What is 0 plus 0?")
    tab_to(page, "CPU")
    page.keyboard.press("Enter")
    expect(page.get_by_role("meter", name="Estimated RAM")).to_be_visible()
    tab_to(page, "Start run")


@pytest.mark.long
def test_from_a_file_to_a_chat_by_keyboard(own_server: Server, tiny_model: Path, visit: Callable[..., Page]) -> None:
    page = visit(own_server)
    expect(page.get_by_role("link", name="Start your first run")).to_be_visible()
    tab_to(page, "Skip to content")
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert "Start your first run" in page.evaluate(_NAME)
    page.keyboard.press("Enter")
    fill_in(page, own_server, tiny_model)
    page.keyboard.press("Enter")
    page.wait_for_url("**/runs/job_*")
    expect(page.get_by_text("Model ready")).to_be_visible(timeout=90_000)
    tab_to(page, "Chat")
    page.keyboard.press("Enter")
    tab_to(page, "Generation settings")
    page.keyboard.press("Enter")
    tab_to(page, "Maximum tokens")
    page.keyboard.press("Control+A")
    page.keyboard.type("8")
    for _ in range(12):
        page.keyboard.press("Shift+Tab")
        if "Message" in page.evaluate(_NAME):
            break
    page.keyboard.type("What is 1 plus 1?")
    page.keyboard.press("Enter")
    expect(page.get_by_text("Model loaded")).to_be_visible(timeout=60_000)


def test_a_run_is_configured_by_keyboard(server: Server, tiny_model: Path, visit: Callable[..., Page]) -> None:
    page = visit(server, "/machine")
    tab_to(page, "New run")
    page.keyboard.press("Enter")
    fill_in(page, server, tiny_model)


def test_sources_are_added_and_removed_by_keyboard(server: Server, visit: Callable[..., Page]) -> None:
    page = visit(server, "/new")

    def enter_path(file: Path) -> None:
        """Choose a path on the server for the source whose first option has the focus."""
        page.keyboard.press("ArrowDown")
        page.keyboard.press("Tab")
        page.keyboard.type(str(file))
        page.keyboard.press("Tab")

    files = [pairs_file(server.root / f"typed-{number}.jsonl", rows=4) for number in range(3)]
    tab_to(page, "Upload")
    enter_path(files[0])
    expect(page.get_by_role("button", name="Add source")).to_be_visible()
    tab_to(page, "Add source")
    page.keyboard.press("Enter")
    enter_path(files[1])
    second = page.get_by_role("group", name="Source 2", exact=True)
    expect(second.get_by_label("Weight", exact=True)).to_be_visible()
    for _ in ("that of the first source", "that of the second"):
        tab_to(page, "Weight")
    page.keyboard.type("0.5")
    tab_to(page, "Add evaluation set")
    page.keyboard.press("Enter")
    assert "Name" in page.evaluate(_NAME)
    page.keyboard.press("Tab")
    enter_path(files[2])
    tab_to(page, "Source to preview")
    page.keyboard.type("Evaluation")
    expect(page.get_by_label("Source to preview").locator("option:checked")).to_have_text(
        "Evaluation set eval-1: typed-2.jsonl"
    )
    expect(second.get_by_label("Weight", exact=True)).to_have_value("0.5")
    second.get_by_role("button", name="Remove").focus()
    page.keyboard.press("Enter")
    expect(second).to_have_count(0)
    assert "Add source" in page.evaluate(_NAME)
