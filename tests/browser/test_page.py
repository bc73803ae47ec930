"""The page in a real browser against a real server, in the order of a first visit."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.browser.views import CheckView, assert_no_overflow
from tests.harness import Server, pairs_file, training_config

pytestmark = pytest.mark.slow

Visit = Callable[..., Page]


@pytest.fixture(scope="module")
def renamed_pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set with other column names."""
    folder = tmp_path_factory.mktemp("renamed")
    rows = [json.loads(line) for line in pairs_file(folder / "pairs.jsonl").read_text().splitlines()]
    file = folder / "renamed.jsonl"
    renamed = [{"ask": row["prompt"], "good": row["chosen"], "bad": row["rejected"]} for row in rows]
    file.write_text("\n".join(json.dumps(row) for row in renamed))
    return file


def test_from_an_empty_server_to_a_run(
    own_server: Server, tiny_model: Path, renamed_pairs: Path, visit: Visit, check_view: CheckView
) -> None:
    page = visit(own_server)
    expect(page.get_by_role("heading", name="Teach a model what you prefer")).to_be_visible()
    check_view(page, "welcome")
    page.get_by_role("link", name="Start your first run").click()
    page.get_by_label("Base model").fill(str(tiny_model))
    expect(page.get_by_text("Chat template")).to_be_visible()
    page.locator("input[type=file]").set_input_files(renamed_pairs)
    expect(page.get_by_label("Chosen answer")).to_have_value("good")
    expect(page.get_by_label("Row format").locator("option:checked")).to_have_text("Not recognized")
    page.get_by_label("Prompt", exact=True).select_option("ask")
    expect(page.get_by_label("Row format").locator("option:checked")).to_have_text("Detected: Standard columns")
    page.get_by_label("Chat format", exact=True).select_option("chatml")
    pair = page.get_by_role("region", name="Formatted pair")
    expect(pair).to_contain_text("It is 0. The runes agree.")
    expect(pair.get_by_text("<|im_start|>").first).to_be_visible()
    page.get_by_role("button", name="CPU").click()
    page.get_by_text("All settings").click()
    page.get_by_label("Batch size").fill("0")
    page.get_by_label("Batch size").blur()
    expect(page.locator("#setting-batch_size-help .error")).to_have_text("Must be between 1 and 1024. ")
    page.get_by_role("button", name="Start run").click()
    expect(page.get_by_role("alert")).to_contain_text("Batch size must be between 1 and 1024")
    page.get_by_label("Batch size").fill("2")
    page.get_by_label("Gradient accumulation steps").fill("1")
    page.get_by_label("Number of epochs").fill("8")
    page.get_by_label("Learning rate", exact=True).fill("1e-3")
    page.get_by_label("Learning rate", exact=True).blur()
    expect(page.get_by_text("pairs per step")).to_contain_text("2 pairs per step")
    expect(page.get_by_role("meter", name="Estimated RAM")).to_be_visible()
    expect(page.get_by_text("estimated from the speed of this CPU")).to_be_visible()
    check_view(page, "new-run")
    with_held_validation(page, lambda: check_view(page, "validating"))
    page.get_by_role("link", name="Machine").click()
    page.get_by_role("link", name="New run").click()
    expect(page.get_by_label("Base model")).to_have_value(str(tiny_model))
    page.reload()
    expect(page.get_by_label("Base model")).to_have_value(str(tiny_model))
    expect(page.get_by_label("Chosen answer")).to_have_value("good")
    expect(page.get_by_label("Number of epochs")).to_have_value("8")
    # Input of a field that still has the focus survives too, whether it is valid or not.
    for field, typed in (("Max length", "128"), ("Max length", "12x"), ("Max length", "256"), ("Maximum rows", "500")):
        page.get_by_label(field, exact=True).fill(typed)
        page.reload()
        expect(page.get_by_label(field, exact=True)).to_have_value(typed)
    expect(page.get_by_label("Max length", exact=True)).to_have_value("256")
    expect(page.get_by_label("Prompt", exact=True)).to_have_value("ask")
    page.get_by_role("button", name="Start run").click()
    page.wait_for_url("**/runs/job_*")
    expect(page.get_by_role("heading", name="Loss")).to_be_visible()


def with_held_validation(page: Page, check: Callable[[], None]) -> None:
    """Check the page while a changed configuration waits for its validation, then let validation answer again."""
    page.route("**/validate", lambda route: None)
    page.get_by_label("Learning rate", exact=True).fill("2e-3")
    page.get_by_label("Learning rate", exact=True).blur()
    expect(page.get_by_text("Validating…")).to_be_visible()
    check()
    page.unroute("**/validate")
    page.get_by_label("Learning rate", exact=True).fill("1e-3")
    page.get_by_label("Learning rate", exact=True).blur()
    expect(page.get_by_text("Validating…")).to_be_hidden()


def test_a_run_is_followed_across_a_reload_to_its_end(own_server: Server, visit: Visit, check_view: CheckView) -> None:
    (job,) = own_server.history()
    page = visit(own_server, f"/runs/{job}")
    loss = page.locator("figure", has=page.get_by_role("heading", name="Loss"))
    expect(loss).to_be_visible()
    own_server.until_step(job, 20)
    page.reload()
    expect(loss).to_be_visible()
    expect(page.get_by_text("Model ready")).to_be_visible(timeout=90_000)
    steps = len(own_server.losses(job))
    expect(loss).to_have_attribute("data-points", str(steps + 1))
    expect(page.get_by_role("region", name="Model", exact=True)).to_contain_text("PeftModel.from_pretrained")
    stages = page.get_by_role("list", name="Stages")
    expect(stages.get_by_role("listitem").filter(has_text="Training")).to_contain_text(re.compile(r"\d s"))
    check_view(page, "run")
    page.get_by_label("to", exact=True).fill("30")
    page.get_by_label("to", exact=True).press("Enter")
    expect(page.get_by_label("Steps", exact=True)).to_have_value("0")
    # A change of theme redraws the charts with the same range.
    page.get_by_role("button", name="theme").click()
    loss.get_by_role("group").focus()
    page.keyboard.press("End")
    expect(loss).to_contain_text("Step 30: training")
    page.keyboard.press("ArrowLeft")
    margin = page.locator("figure", has=page.get_by_role("heading", name="Reward margin"))
    for chart in (loss, margin):
        expect(chart.get_by_text("Step 29", exact=True)).to_be_visible()
    page.get_by_role("button", name="Reset zoom").click()
    expect(page.get_by_label("to", exact=True)).to_have_value("")


def test_chat_and_blind_comparison(own_server: Server, visit: Visit, check_view: CheckView) -> None:
    (job,) = own_server.history()
    page = visit(own_server, f"/runs/{job}")
    page.get_by_role("link", name="Chat").click()
    page.get_by_text("Generation settings").click()
    page.get_by_label("Maximum tokens").fill("12")
    page.get_by_label("Message", exact=True).fill("What is 2 plus 2?")
    page.get_by_label("Message", exact=True).press("Enter")
    expect(page.get_by_text("Model loaded")).to_be_visible(timeout=60_000)
    expect(page.get_by_role("button", name="Send")).to_be_visible(timeout=60_000)
    for side in ("Fine-tuned", "Base"):
        expect(page.get_by_role("region", name=side).locator("p.answer")).not_to_be_empty()
    check_view(page, "chat")
    page.get_by_role("button", name="Blind comparison").click()
    page.get_by_label("Message", exact=True).fill("What is 3 plus 3?")
    page.get_by_role("button", name="Compare").click()
    page.get_by_role("button", name="Prefer this answer").first.click(timeout=60_000)
    expect(page.get_by_text("You preferred the")).to_be_visible()
    expect(
        page.get_by_text("1 for the fine-tuned model, 0").or_(page.get_by_text("0 for the fine-tuned model, 1"))
    ).to_be_visible()
    check_view(page, "blind")
    page.get_by_role("button", name="Save votes").click()
    expect(page.get_by_text("pairs saved as")).to_be_visible()
    page.get_by_role("button", name="Unload").click()
    expect(page.get_by_text("The model is loaded with your first message")).to_be_visible()


@pytest.mark.long
def test_runs_are_searched_compared_and_deleted_after_confirmation(
    own_server: Server, visit: Visit, check_view: CheckView
) -> None:
    page = visit(own_server)
    page.get_by_role("button", name="Duplicate").click()
    page.wait_for_url("**/new?from=*")
    expect(page.get_by_label("Number of epochs")).to_have_value("8")
    page.get_by_text("All settings").click()
    page.get_by_label("Number of epochs").fill("100")
    page.get_by_label("Number of epochs").blur()
    page.get_by_role("button", name="Start run").click()
    page.wait_for_url("**/runs/job_*")
    # A queued job is stopped without confirmation.
    expect(page.get_by_role("heading", name="Loss")).to_be_visible()
    page.get_by_role("button", name="Stop").click()
    page.get_by_role("dialog").get_by_role("button", name="Stop").click()
    expect(page.get_by_text("Stopped").first).to_be_visible(timeout=60_000)
    page.get_by_role("link", name="Runs", exact=True).click()
    expect(page.get_by_role("checkbox")).to_have_count(2)
    for box in page.get_by_role("checkbox").all():
        box.check()
    check_view(page, "runs")
    page.get_by_role("link", name="Compare 2 runs").click()
    expect(page.get_by_role("cell", name="Stopped")).to_be_visible()
    expect(page.locator("figure").first).to_be_visible()
    page.get_by_label("Smoothing").fill("0.9")
    check_view(page, "compare")
    page.get_by_role("link", name="Runs", exact=True).click()
    page.get_by_label("Search runs").fill("no such name")
    expect(page.get_by_text("No runs match.")).to_be_visible()
    page.get_by_role("button", name="Clear filters").click()
    page.get_by_role("button", name="Delete").first.click()
    page.get_by_role("dialog").get_by_role("button", name="Cancel").click()
    expect(page.get_by_role("listitem")).to_have_count(2)
    expect(page.get_by_role("button", name="Delete").first).to_be_focused()
    page.get_by_role("button", name="Delete").first.click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(page.get_by_role("listitem")).to_have_count(1)
    expect(page.get_by_role("main")).to_be_focused()
    expect(page.get_by_text("Deleted: tiny-tuned")).to_be_attached()


def test_a_configuration_is_saved_replaced_loaded_and_deleted(
    own_server: Server, tiny_model: Path, visit: Visit
) -> None:
    (job, *_) = own_server.history()
    page = visit(own_server, f"/new?from={job}")
    expect(page.get_by_label("Base model")).to_have_value(str(tiny_model))
    page.get_by_label("Chat format", exact=True).select_option("custom")
    page.get_by_label("Text before the user message").fill("Q: ")
    page.get_by_label("Text before the user message").blur()
    expect(page.get_by_role("region", name="Formatted pair")).to_contain_text("Q: What is 0 plus 0?")
    page.get_by_label("Save this configuration as").fill("with-questions")
    page.get_by_role("button", name="Save", exact=True).click()
    expect(page.get_by_text("saved successfully")).to_be_visible()
    page.get_by_role("button", name="Save", exact=True).click()
    page.get_by_role("dialog").get_by_role("button", name="Replace").click()
    page.goto("/new")
    page.get_by_label("Load a saved configuration").select_option("with-questions")
    expect(page.get_by_label("Text before the user message")).to_have_value("Q: ")
    page.get_by_role("button", name="Delete with-questions").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(page.get_by_label("Load a saved configuration")).to_have_count(0)
    page.get_by_role("button", name="Use the sample data").click()
    expect(page.get_by_role("heading", name="Columns (216 rows)")).to_be_visible()


def test_the_machine_and_pages_that_do_not_exist(own_server: Server, visit: Visit, check_view: CheckView) -> None:
    page = visit(own_server, "/machine")
    expect(page.get_by_role("meter", name="RAM")).to_be_visible()
    expect(page.get_by_text("transformers")).to_be_visible()
    check_view(page, "machine")
    page.goto("/runs/job_20000101_000000")
    expect(page.get_by_role("heading", name="Run not found")).to_be_visible()
    page.goto("/runs/%E0%A4%A")
    expect(page.get_by_role("heading", name="Run not found")).to_be_visible()
    page.goto("/nowhere/at/all")
    expect(page.get_by_role("heading", name="Page not found")).to_be_visible()
    page.goto("/compare")
    expect(page.get_by_text("Select two or more runs")).to_be_visible()


@pytest.mark.long
def test_an_unreachable_server_is_shown_and_no_metrics_are_missed(
    own_server: Server, tiny_model: Path, visit: Visit, check_view: CheckView
) -> None:
    steps = {"max_steps": 500, "num_epochs": 1000, "eval_steps": 0, "save_steps": 0}
    config = training_config(tiny_model, pairs_file(own_server.root / "pairs.jsonl"), "away", **steps)
    job = own_server.train(config)
    page, other = visit(own_server, f"/runs/{job}"), visit(own_server, "/new")
    own_server.until_step(job, 5)
    own_server.kill()
    expect(page.get_by_role("alert")).to_contain_text("is unreachable")
    other.get_by_label("Base model").fill(str(tiny_model))
    expect(other.get_by_text("Reconnecting automatically")).to_be_visible()
    check_view(page, "away")
    page.wait_for_timeout(10_000)
    own_server.start()
    for each in (page, other):
        expect(each.get_by_text("Reconnecting automatically")).to_have_count(0, timeout=15_000)
    own_server.until_ended(job, 120)
    loss = page.locator("figure", has=page.get_by_role("heading", name="Loss"))
    expect(loss).to_have_attribute("data-points", "500")


@pytest.mark.long
def test_a_requested_stop_is_shown_before_the_step_ends(own_server: Server, tiny_model: Path, visit: Visit) -> None:
    config = training_config(tiny_model, pairs_file(own_server.root / "pairs.jsonl"), "held", num_epochs=1000)
    job = own_server.train(config)
    own_server.until_step(job, 2)
    page, runs = visit(own_server, f"/runs/{job}"), visit(own_server)
    expect(page.get_by_text("Training", exact=True).first).to_be_visible()
    own_server.kill_worker(job, signal.SIGSTOP)
    try:
        page.get_by_role("button", name="Pause").click()
        for each in (page, runs):
            expect(each.get_by_text("Pausing", exact=True)).to_be_visible(timeout=10_000)
        page.get_by_role("button", name="Stop").click()
        page.get_by_role("dialog").get_by_role("button", name="Stop").click()
        for each in (page, runs):
            expect(each.get_by_text("Stopping", exact=True)).to_be_visible(timeout=10_000)
        expect(page.get_by_role("button", name="Stop")).to_have_count(0)
    finally:
        own_server.kill_worker(job, signal.SIGCONT)
    expect(page.get_by_text("Stopped", exact=True).first).to_be_visible()


def test_a_failed_upload_leaves_no_file_selected(
    own_server: Server, renamed_pairs: Path, tmp_path: Path, visit: Visit
) -> None:
    page = visit(own_server, "/new")
    page.locator("input[type=file]").set_input_files(renamed_pairs)
    expect(page.get_by_label("Chosen answer")).to_be_visible()
    (tmp_path / "broken.jsonl").write_text("no json\n")
    page.locator("input[type=file]").set_input_files(tmp_path / "broken.jsonl")
    expect(page.get_by_role("alert").first).to_contain_text("line 1")
    expect(page.get_by_label("Chosen answer")).to_have_count(0)


@pytest.mark.long
def test_the_prompt_length_follows_the_pair_length(own_server: Server, tiny_model: Path, visit: Visit) -> None:
    page = visit(own_server, "/new")
    page.get_by_label("Base model").fill(str(tiny_model))
    page.get_by_role("button", name="Use the sample data").click()
    page.get_by_label("Max length", exact=True).fill("200")
    page.get_by_label("Max length", exact=True).blur()
    page.get_by_text("All settings").click()
    expect(page.get_by_label("Max prompt length")).to_have_attribute("placeholder", "100")
    expect(page.get_by_role("meter", name="Estimated RAM")).to_be_visible()
    expect(page.get_by_text("must be below max_length")).to_have_count(0)


def test_user_content_is_never_interpreted_as_html(own_server: Server, tiny_model: Path, visit: Visit) -> None:
    attack = "<img src=x onerror=\"document.title='broken in'\"><script>document.title='broken in'</script>"
    word = "w" * 10_000
    file = own_server.root / "<b>bold<b>.jsonl"
    rows = [{"prompt": f"{attack} {n}", "chosen": word, "rejected": f"{word}{attack}", attack: word} for n in range(3)]
    file.write_text("\n".join(json.dumps(row) for row in rows))
    page = visit(own_server, "/new", width=360)
    page.get_by_label("Base model").fill(str(tiny_model))
    page.locator("input[type=file]").set_input_files(file)
    page.get_by_label("Chat format", exact=True).select_option("chatml")
    expect(page.get_by_role("region", name="Formatted pair")).to_contain_text("<script>")
    expect(page.get_by_role("region", name="Original row")).to_contain_text("<img src=x")
    assert_no_overflow(page)
    page.get_by_label("Base model").fill(f"/{word}{attack}")
    expect(page.locator("#base-model-status .error").first).to_be_visible()
    assert_no_overflow(page)
    page.goto(f"/runs/{attack.replace('/', '')}")
    expect(page.get_by_role("heading", name="Run not found")).to_be_visible()
    assert "broken" not in page.title()


def test_login_with_an_api_key(new_server: Callable[..., Server], visit: Visit, check_view: CheckView) -> None:
    server = new_server(API_KEY="open sesame")
    page = visit(server)
    expect(page.get_by_role("heading", name="Log in")).to_be_visible()
    check_view(page, "login")
    page.get_by_label("API key").fill("wrong")
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_role("alert")).to_contain_text("incorrect")
    page.get_by_label("API key").fill("open sesame")
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_role("link", name="Start your first run")).to_be_visible()
    page.get_by_role("button", name="Log out").click()
    expect(page.get_by_role("heading", name="Log in")).to_be_visible()
