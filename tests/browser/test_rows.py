"""All rows of a data set in the form of a new run: browsing, findings, lengths and where the rows come from."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from merlina.data.row_formats.registry import ROW_FORMATS
from tests.browser.views import CheckView
from tests.data_host import data_host
from tests.docs.test_row_formats import EXAMPLES
from tests.harness import Server

pytestmark = pytest.mark.slow

Visit = Callable[..., Page]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def pair(number: int) -> dict[str, Any]:
    """Return a row; every 400th lacks its answer, and rows 3 and 650 are long."""
    long = "The runes agree and agree again. " * 60
    chosen = "" if number % 400 == 0 else long if number in (3, 650) else f"It is {2 * number}."
    return {"prompt": f"What is {number} plus {number}?", "chosen": chosen, "rejected": "I can't really say."}


@pytest.fixture(scope="module")
def many_pairs(own_server: Server) -> Path:
    return write_rows(own_server.root / "pairs.jsonl", [pair(number) for number in range(1, 1201)])


def open_file(page: Page, file: Path, chat_format: str = "chatml") -> None:
    page.get_by_label("Path on the server", exact=True).check()
    page.get_by_label("Path on the server (within ALLOWED_PATHS)").fill(str(file))
    page.get_by_label("Path on the server (within ALLOWED_PATHS)").blur()
    page.get_by_label("Chat format", exact=True).select_option(chat_format)


def sent_source(page: Page, change: Callable[[], object]) -> dict[str, Any]:
    """Return the source of the data set in the next request for its columns."""
    with page.expect_request("**/dataset/columns") as request:
        change()
    source: dict[str, Any] = request.value.post_data_json["source"]
    return source


def test_every_row_can_be_reached(
    own_server: Server, tiny_model: Path, many_pairs: Path, visit: Visit, check_view: CheckView
) -> None:
    page = visit(own_server, "/new")
    page.get_by_label("Base model").fill(str(tiny_model))
    open_file(page, many_pairs)
    number = page.get_by_label("Row", exact=True)
    stored, formatted = (page.get_by_role("region", name=name) for name in ("Original row", "Formatted pair"))
    expect(page.get_by_role("group", name="Rows", exact=True)).to_contain_text("of 1,200")
    expect(formatted).to_contain_text("What is 1 plus 1?")
    # A preview examines rows for a limited time: 500 of them if the machine is not busy.
    expect(page.get_by_text(re.compile(r"pairs in the first \d+ rows, in tokens"))).to_be_visible()
    for row in range(2, 8):
        page.get_by_role("button", name="Next", exact=True).click()
        expect(number).to_have_value(str(row))
        expect(stored).to_contain_text(f"What is {row} plus {row}?")
    number.fill("1000")
    number.press("Enter")
    for shown in (stored, formatted):
        expect(shown).to_contain_text("What is 1000 plus 1000?")
    page.get_by_role("button", name="Previous", exact=True).click()
    expect(stored).to_contain_text("What is 999 plus 999?")
    # A change of the form keeps the position.
    page.get_by_label("Chat format", exact=True).select_option("llama3")
    expect(formatted).to_contain_text("<|start_header_id|>")
    expect(number).to_have_value("999")
    number.fill("5000")
    number.press("Enter")
    expect(number).to_have_value("1200")
    expect(page.get_by_role("button", name="Next", exact=True)).to_be_disabled()
    check_view(page, "rows")


def test_only_rows_with_findings_are_shown(
    own_server: Server, tiny_model: Path, many_pairs: Path, visit: Visit
) -> None:
    page = visit(own_server, "/new")
    page.get_by_label("Base model").fill(str(tiny_model))
    open_file(page, many_pairs)
    number, kinds = page.get_by_label("Row", exact=True), page.get_by_role("list", name="Findings on this row")
    page.get_by_label("Show", exact=True).select_option("findings")
    missing, truncated = "Prompt or answer missing", "Truncated"
    for row, kind in (("3", truncated), ("400", missing), ("650", truncated), ("800", missing)):
        expect(number).to_have_value(row)
        expect(kinds).to_contain_text(kind)
        page.get_by_role("button", name="Next", exact=True).click()
    expect(number).to_have_value("1200")
    expect(page.get_by_role("region", name="Formatted pair")).to_contain_text("cannot be used: chosen is empty")
    page.get_by_role("button", name="Previous", exact=True).click()
    expect(number).to_have_value("800")
    # A preview examines rows for a limited time; row 3 is among them on a busy machine, too.
    finding = page.get_by_role("listitem").filter(has_text="longer than max_length")
    finding.get_by_role("button", name="Show rows").click()
    expect(page.get_by_label("Show", exact=True)).to_have_value("over_max_length")
    expect(number).to_have_value("3")
    # A search begins at the entered row.
    number.fill("4")
    number.press("Enter")
    expect(number).to_have_value("650")
    page.get_by_label("Show", exact=True).select_option("")
    expect(number).to_have_value("1")


def test_a_search_without_a_result_says_how_far_it_went(own_server: Server, many_pairs: Path, visit: Visit) -> None:
    page = visit(own_server, "/new")
    open_file(page, many_pairs)
    expect(page.get_by_text(re.compile(r"pairs in the first \d+ rows, in characters"))).to_be_visible()
    page.get_by_label("Show", exact=True).select_option("empty_side")
    expect(page.get_by_label("Row", exact=True)).to_have_value("400")
    page.get_by_label("Maximum rows").fill("399")
    page.get_by_label("Maximum rows").blur()
    expect(page.get_by_text("No rows of this kind up to the last row.")).to_be_visible()


def test_rows_are_shown_while_they_cannot_be_formatted(own_server: Server, many_pairs: Path, visit: Visit) -> None:
    page = visit(own_server, "/new")
    open_file(page, many_pairs, "tokenizer")
    expect(page.get_by_text("Select a base model to preview its chat template.")).to_be_visible()
    page.get_by_label("Row", exact=True).fill("1111")
    page.get_by_label("Row", exact=True).press("Enter")
    expect(page.get_by_role("region", name="Original row")).to_contain_text("What is 1111 plus 1111?")
    expect(page.get_by_label("Show", exact=True)).to_be_disabled()


def test_the_encoding_of_a_file_can_be_set(own_server: Server, tmp_path: Path, visit: Visit) -> None:
    file = own_server.root / "paires.csv"
    file.write_bytes("prompt;chosen;rejected\nPourquoi \x9cuvre?;Été;Non\n".encode("latin-1"))
    page = visit(own_server, "/new")
    open_file(page, file)
    page.get_by_text("More options").click()
    source = sent_source(page, lambda: page.get_by_label("Encoding").select_option("cp1252"))
    assert source == {"source_type": "local_file", "file_path": str(file), "encoding": "cp1252"}
    expect(page.get_by_role("region", name="Original row")).to_contain_text("Pourquoi œuvre?")
    page.reload()
    expect(page.get_by_label("Encoding")).to_have_value("cp1252")


def test_a_file_at_an_address_can_be_chosen(new_server: Callable[..., Server], many_pairs: Path, visit: Visit) -> None:
    with data_host({"open/pairs.jsonl": many_pairs.read_bytes()}) as host:
        page = visit(new_server(ALLOWED_DATA_URLS=host.origin), "/new")
        page.get_by_label("Address", exact=True).check()
        address = page.get_by_label("Address of the file (within ALLOWED_DATA_URLS)")
        address.fill(f"{host.origin}/open/pairs.jsonl")
        assert sent_source(page, address.blur) == {"source_type": "url", "url": f"{host.origin}/open/pairs.jsonl"}
        page.get_by_label("Chat format", exact=True).select_option("chatml")
        expect(page.get_by_role("region", name="Original row")).to_contain_text("What is 1 plus 1?")
        expect(page.get_by_role("region", name="Formatted pair")).to_contain_text("What is 1 plus 1?")
        page.reload()
        expect(address).to_have_value(f"{host.origin}/open/pairs.jsonl")


def test_configuration_revision_and_files_of_a_hub_data_set_can_be_set(own_server: Server, visit: Visit) -> None:
    page = visit(own_server, "/new")
    page.get_by_label("Hugging Face Hub").check()

    def enter(label: str, text: str) -> Callable[[], None]:
        def change() -> None:
            page.get_by_label(label, exact=True).fill(text)
            page.get_by_label(label, exact=True).blur()

        return change

    sent_source(page, enter("Data set", "org/pairs"))
    page.get_by_text("More options").click()
    sent_source(page, enter("Configuration (subset)", "english"))
    sent_source(page, enter("Revision", "v1.0"))
    source = sent_source(page, enter("Files", "a/*.parquet\nb/*.parquet"))
    files = {"config_name": "english", "revision": "v1.0", "data_files": ["a/*.parquet", "b/*.parquet"]}
    assert source == {"source_type": "huggingface", "repo_id": "org/pairs", "split": "train", **files}
    assert sent_source(page, enter("Split", "test")) == {**source, "split": "test"}
    # The options belong to one data set.
    assert sent_source(page, enter("Data set", "org/others")) == {
        "source_type": "huggingface",
        "repo_id": "org/others",
        "split": "test",
    }


def test_single_answers_and_labels_are_mapped_for_kto(own_server: Server, visit: Visit) -> None:
    rows = [{"ask": f"Why {n}?", "text": "So.", "liked": n % 2 == 0} for n in range(30)]
    file = write_rows(own_server.root / "unpaired.jsonl", rows)
    page = visit(own_server, "/new")
    open_file(page, file)
    expect(page.get_by_label("Chosen answer")).to_be_visible()
    expect(page.get_by_label("Single answer")).to_have_count(0)
    page.get_by_label("Training mode").select_option("kto")
    for label, column in (("Prompt", "ask"), ("Single answer", "text"), ("Label", "liked")):
        page.get_by_label(label, exact=True).select_option(column)
    expect(page.get_by_label("Row format").locator("option:checked")).to_have_text(
        "Detected: Unpaired answers with a label"
    )
    expect(page.get_by_role("region", name="Formatted pair")).to_contain_text("So.")


def drop_file(page: Page, name: str, text: str) -> None:
    transfer = page.evaluate_handle(
        "([name, text]) => { const data = new DataTransfer(); data.items.add(new File([text], name)); return data; }",
        [name, text],
    )
    page.locator("label", has_text="Drop a file here").dispatch_event("drop", {"dataTransfer": transfer})


def test_each_row_format_is_recognized_when_its_file_is_dropped(own_server: Server, visit: Visit) -> None:
    page = visit(own_server, "/new")
    mode, row_format = page.get_by_label("Training mode"), page.get_by_label("Row format").locator("option:checked")
    pair = page.get_by_role("region", name="Formatted pair")
    for name, example in EXAMPLES:
        # A text of its own tells that the previous file is no longer shown.
        row = json.loads(example.replace("a river.", f"a river, {name}."))
        rows = [row, {**row, "response": "A hill.", "helpfulness": 0}] if name == "helpsteer" else [row]
        is_compared = name not in ("messages", "unpaired", "prompt_completion", "question_answer")
        mode.select_option("orpo" if is_compared else "kto" if name == "unpaired" else "sft")
        drop_file(page, f"{name}.jsonl", "".join(json.dumps(each) + "\n" for each in rows))
        expect(row_format).to_have_text(f"Detected: {ROW_FORMATS[name].title}")  # type: ignore[index]
        if name == EXAMPLES[0][0]:
            page.get_by_label("Chat format", exact=True).select_option("chatml")
        answers = r"The Rhine\..*A hill\." if is_compared else r"The Rhine\."
        expect(pair).to_contain_text(re.compile(rf"Name\s+a river, {name}\..*{answers}", re.DOTALL))


def test_a_finding_offers_the_option_that_resolves_it(own_server: Server, visit: Visit) -> None:
    page = visit(own_server, "/new")
    open_file(page, write_rows(own_server.root / "twice.jsonl", [pair(number) for number in (1, 2, 2, 3)]))
    expect(page.get_by_text("1 of 4 rows repeat an earlier one: each copy adds weight")).to_be_visible()
    page.get_by_role("button", name="Drop them").click()
    expect(page.get_by_label("Drop repeated rows")).to_be_checked()
    expect(page.get_by_text("1 of 4 rows repeat an earlier one and are dropped")).to_be_visible()
    expect(page.get_by_role("button", name="Drop them")).to_have_count(0)
