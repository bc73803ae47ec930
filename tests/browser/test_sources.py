"""Several sources and own evaluation sets: from the form of a new run to its charts and back to the form."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.browser.test_rows import open_file, write_rows
from tests.browser.views import CheckView
from tests.harness import Server, pairs_file, training_config

pytestmark = pytest.mark.slow

Visit = Callable[..., Page]
_WITH_NAMES = {"ask": "prompt", "good": "chosen", "bad": "rejected"}


def renamed_pairs(path: Path) -> Path:
    rows = [json.loads(line) for line in pairs_file(path, rows=8).read_text().splitlines()]
    return write_rows(path, [{"ask": row["prompt"], "good": row["chosen"], "bad": row["rejected"]} for row in rows])


def other_names(path: Path) -> Path:
    rows = [json.loads(line) for line in pairs_file(path, rows=8).read_text().splitlines()]
    return write_rows(
        path, [{"question": row["prompt"], "winner": row["chosen"], "loser": row["rejected"]} for row in rows]
    )


def conversations(path: Path) -> Path:
    """Write a ShareGPT data set."""
    return write_rows(
        path,
        [
            {
                "conversations": [{"from": "human", "value": f"Name river {number}."}],
                "chosen": {"from": "gpt", "value": f"River {number} is the Rhine."},
                "rejected": {"from": "gpt", "value": "A hill."},
            }
            for number in range(8)
        ],
    )


def group(page: Page, name: str) -> Locator:
    return page.get_by_role("group", name=name, exact=True)


def choose_file(panel: Locator, file: Path) -> None:
    panel.get_by_label("Path on the server", exact=True).check()
    field = panel.get_by_label("Path on the server (within ALLOWED_PATHS)")
    field.fill(str(file))
    field.blur()


def local(file: Path) -> dict[str, Any]:
    return {"source_type": "local_file", "file_path": str(file)}


def fill_in_sources(page: Page, root: Path) -> None:
    """Select two sources and two evaluation sets."""
    open_file(page, renamed_pairs(root / "renamed.jsonl"))
    page.get_by_label("Prompt", exact=True).select_option("ask")
    expect(page.get_by_label("Weight", exact=True)).to_have_count(0)

    page.get_by_role("button", name="Add source").click()
    second = group(page, "Source 2")
    expect(second.get_by_label("Upload", exact=True)).to_be_focused()
    second.locator("input[type=file]").set_input_files(conversations(root / "conversations.jsonl"))
    expect(second.get_by_label("Row format").locator("option:checked")).to_have_text("Detected: ShareGPT conversations")
    expect(group(page, "Source 1").get_by_label("Chosen answer")).to_have_value("good")
    second.get_by_label("Weight", exact=True).fill("2")
    second.get_by_label("Maximum rows of this source").fill("6")
    page.get_by_label("Order of the sources").select_option("concatenate")

    page.get_by_role("button", name="Add evaluation set").click()
    expect(page.get_by_label("Held out for evaluation")).to_have_value("0")
    first = group(page, "Evaluation set eval-1")
    expect(first.get_by_label("Name")).to_be_focused()
    choose_file(first, renamed_pairs(root / "news.jsonl"))
    expect(first.get_by_label("Prompt", exact=True)).to_have_value("ask")
    first.get_by_label("Name").fill("news")
    page.get_by_role("button", name="Add evaluation set").click()
    other = group(page, "Evaluation set eval-1")
    choose_file(other, other_names(root / "code.jsonl"))
    expect(other.get_by_label("Chosen answer")).to_have_value("winner")
    other.get_by_label("Rejected answer").select_option("loser")
    other.get_by_label("Name").fill("news")
    other.get_by_label("Name").blur()
    named_twice = group(page, "Evaluation set news").last
    expect(named_twice).to_contain_text("Another evaluation set has this name.")
    expect(page.get_by_text("Correct the names of the evaluation sets.")).to_be_visible()
    named_twice.get_by_label("Name").fill("code")
    named_twice.get_by_label("Name").blur()


def test_a_run_on_several_sources_from_the_form_to_the_comparison(
    own_server: Server, tiny_model: Path, visit: Visit, check_view: CheckView
) -> None:
    root = own_server.root
    alone = own_server.train(
        training_config(tiny_model, pairs_file(root / "pairs.jsonl", rows=8), "alone", max_steps=2)
    )
    page = visit(own_server, "/new")
    page.get_by_label("Base model").fill(str(tiny_model))
    fill_in_sources(page, root)
    pair, preview = page.get_by_role("region", name="Formatted pair"), page.get_by_label("Source to preview")
    for part, text in (
        ("Source 1: renamed.jsonl", "What is 0 plus 0?"),
        ("Source 2: conversations.jsonl", "River 0 is the Rhine."),
        ("Evaluation set code: code.jsonl", "What is 0 plus 0?"),
    ):
        preview.select_option(part)
        expect(pair).to_contain_text(text)
    check_view(page, "sources")
    page.reload()
    expect(group(page, "Source 2").get_by_label("Weight", exact=True)).to_have_value("2")
    expect(group(page, "Evaluation set code").get_by_label("Name")).to_have_value("code")

    page.get_by_text("All settings").click()
    for field, value in (("Max steps", "4"), ("Gradient accumulation steps", "1"), ("Eval steps", "2")):
        page.get_by_label(field, exact=True).fill(value)
    page.get_by_label("Eval steps", exact=True).blur()
    with page.expect_request("**/train?*") as request:
        page.get_by_role("button", name="Start run").click()
    sent = request.value.post_data_json["dataset"]
    uploaded = sent["sources"][1]["source"]["dataset_id"]
    assert sent == {
        "sources": [
            {"source": local(root / "renamed.jsonl")},
            {
                "source": {"source_type": "upload", "dataset_id": uploaded},
                "column_mapping": {},
                "max_samples": 6,
                "weight": 2,
            },
        ],
        "source_order": "concatenate",
        "column_mapping": _WITH_NAMES,
        "eval_sources": {
            "news": local(root / "news.jsonl"),
            "code": {
                "source": local(root / "code.jsonl"),
                "column_mapping": {"question": "prompt", "winner": "chosen", "loser": "rejected"},
            },
        },
        "format": {"format_type": "chatml"},
        "test_size": 0,
    }
    page.wait_for_url("**/runs/job_*")
    job = page.url.rsplit("/", 1)[1]
    expect(page.get_by_text("Model ready")).to_be_visible(timeout=90_000)

    loss = page.locator("figure", has=page.get_by_role("heading", name="Loss", exact=True))
    expect(loss.get_by_role("listitem").filter(has_text="news")).to_be_visible()

    with page.expect_request("**/validate") as request:
        page.goto(f"/new?from={job}")
        expect(group(page, "Source 2").get_by_label("Maximum rows of this source")).to_have_value("6")
    copied = request.value.post_data_json["dataset"]
    news, code = copied["eval_sources"]["news"], copied["eval_sources"]["code"]
    for source in (*[one["source"] for one in copied["sources"]], news, code["source"]):
        assert source.pop("split") == "train"
    assert copied == sent

    page.goto(f"/compare?runs={alone},{job}")
    for title in ("Loss (evaluation)", "Loss (evaluation on news)", "Loss (evaluation on code)"):
        expect(page.get_by_role("heading", name=title, exact=True)).to_be_visible()
    row = page.get_by_role("row", name="eval_loss/news")
    expect(row.get_by_role("cell").first).to_have_text("–")
    expect(row.get_by_role("cell").last).to_contain_text(".")
    check_view(page, "compare-sets")


def test_removed_sources_leave_the_form_of_a_single_one(own_server: Server, visit: Visit) -> None:
    root = own_server.root
    page = visit(own_server, "/new")
    open_file(page, renamed_pairs(root / "renamed.jsonl"))
    page.get_by_label("Held out for evaluation").select_option("0.1")
    page.get_by_role("button", name="Add source").click()
    choose_file(group(page, "Source 2"), conversations(root / "conversations.jsonl"))
    page.get_by_role("button", name="Add evaluation set").click()
    page.get_by_role("button", name="Remove Evaluation set eval-1").click()
    expect(page.get_by_role("button", name="Add evaluation set")).to_be_focused()
    expect(page.get_by_label("Held out for evaluation")).to_have_value("0.1")
    page.get_by_role("button", name="Remove Source 1").click()
    expect(page.get_by_role("button", name="Add source")).to_be_focused()
    expect(page.get_by_label("Weight", exact=True)).to_have_count(0)
    path = page.get_by_label("Path on the server (within ALLOWED_PATHS)")
    expect(path).to_have_value(str(root / "conversations.jsonl"))
    expect(page.get_by_role("region", name="Formatted pair")).to_contain_text("River 0 is the Rhine.")


def test_problems_of_a_source_are_shown_at_it(own_server: Server, tiny_model: Path, visit: Visit) -> None:
    page = visit(own_server, "/new")
    page.get_by_label("Base model").fill(str(tiny_model))
    open_file(page, pairs_file(own_server.root / "pairs.jsonl", rows=8))
    page.get_by_role("button", name="Add source").click()
    expect(page.get_by_text("Select a data set for source 2, or remove it.")).to_be_visible()
    second = group(page, "Source 2")
    choose_file(second, own_server.root / "missing.jsonl")
    expect(second.get_by_role("alert").first).to_contain_text("There is no file")
    choose_file(second, conversations(own_server.root / "conversations.jsonl"))
    second.get_by_label("Weight", exact=True).fill("0")
    second.get_by_label("Weight", exact=True).blur()
    expect(second.get_by_role("alert")).to_contain_text("Weight")
    expect(group(page, "Source 1").get_by_role("alert")).to_have_count(0)
