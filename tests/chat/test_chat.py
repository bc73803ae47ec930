from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from merlina.client import AsyncClient, Client
from merlina.errors import ConflictError, InsufficientMemoryError, InvalidRequestError, NotFoundError
from merlina.schemas.chat import AnswerBegins, AnswerEnds, AnswerRequest, AnswerText, ComparisonRequest
from merlina.schemas.datasets.config import DatasetConfig
from merlina.storage.database import Database
from tests.chat.trained import QUESTION, Trained, reference_answer
from tests.harness import Server, acting_worker, has_ended, pairs_file, training_config, until


@pytest.fixture(scope="module")
def client(trained: Trained) -> Iterator[Client]:
    """Loading a model takes seconds, so it stays loaded from one test to the next."""
    with trained.server.client() as client:
        yield client
        client.unload_chat_model()


def text_of(client: Client, trained: Trained, **changes: Any) -> str:
    events = client.answer(AnswerRequest.model_validate(trained.ask(**changes)))
    return "".join(event.text for event in events if isinstance(event, AnswerText))


def chat_process(server: Server) -> psutil.Process | None:
    """Return the chat process of this server."""
    assert server.process is not None
    below = psutil.Process(server.process.pid).children(recursive=True)
    return next((process for process in below if "merlina chat" in _command(process)), None)


def _command(process: psutil.Process) -> str:
    """Return the command line, or an empty list if the process has ended."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return " ".join(process.cmdline())
    return ""


def test_both_sides_give_their_models_answers(client: Client, trained: Trained, tiny_model: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(trained.folder)
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    tuned = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), trained.folder)
    conversation = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Why is the sky blue?"},
        {"role": "assistant", "content": "Ask the runes."},
        {"role": "user", "content": QUESTION},
    ]
    for messages in ([{"role": "user", "content": QUESTION}], conversation):
        for side, model in (("tuned", tuned.merge_and_unload()), ("base", base), ("tuned", tuned)):
            expected = reference_answer(model.eval(), tokenizer, messages, 20)
            assert text_of(client, trained, messages=messages, side=side) == expected
    assert text_of(client, trained, side="tuned") != text_of(client, trained, side="base")


def test_the_prompt_is_the_one_that_was_trained_on(client: Client, trained: Trained, tiny_model: Path) -> None:
    dataset = {**trained.config["dataset"], "model_name": str(tiny_model)}
    sample = client.preview_formatted(DatasetConfig.model_validate(dataset)).samples[0]
    begun, *_, end = client.answer(AnswerRequest.model_validate(trained.ask("What is 0 plus 0?")))
    assert isinstance(begun, AnswerBegins)
    assert (begun.prompt, begun.prompt_tokens) == (sample["prompt"], len(sample["tokens"]["prompt"]["ids"]))
    assert isinstance(end, AnswerEnds)
    assert end.tokens <= 20


def test_a_seed_reproduces_its_answer(client: Client, trained: Trained) -> None:
    drawn = [text_of(client, trained, temperature=1.5, top_p=1.0, seed=seed) for seed in (1, 2, 1)]
    assert drawn[0] == drawn[2] != drawn[1]
    likeliest = text_of(client, trained)
    assert text_of(client, trained, temperature=1.5, top_p=1e-9, seed=5) == likeliest


def _long_answers(client: Client, trained: Trained) -> Iterator[tuple[dict[str, Any], float]]:
    """Requests for answers that do not end by themselves, with the seconds they take."""
    for seed in range(50):
        ask = trained.ask(max_new_tokens=400, temperature=2.0, top_p=1.0, seed=seed)
        *_, end = client.answer(AnswerRequest.model_validate(ask))
        assert isinstance(end, AnswerEnds)
        if end.reason == "max_new_tokens":
            yield ask, end.seconds


def test_lines_are_streamed_and_a_closed_connection_cancels_them(client: Client, trained: Trained) -> None:
    ask, needed = next(_long_answers(client, trained))
    log = trained.server.root / "server.log"
    logged = len(log.read_text())
    with httpx.stream("POST", f"{trained.server.url}/chat/answer", json=ask, timeout=60) as response:
        assert response.headers["content-type"] == "application/x-ndjson"
        assert response.headers["x-accel-buffering"] == "no"
        lines = response.iter_lines()
        assert [json.loads(next(lines))["type"] for _ in range(3)] == ["begin", "text", "text"]
        assert client.chat_state().state == "answering"
        for path in ("answer", "comparisons"):
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(f"{trained.server.url}/chat/{path}", json=ask, timeout=0.1)
    began = time.monotonic()
    until(lambda: client.chat_state().state == "ready", 20, "the end of an answer nobody reads")
    assert time.monotonic() - began < needed / 2
    assert client.comparisons(trained.job_id).total == 0
    assert "Traceback" not in log.read_text()[logged:]


def test_a_job_without_a_model_is_refused(client: Client, trained: Trained, tiny_model: Path) -> None:
    with pytest.raises(NotFoundError):
        client.load_chat_model("job_none")
    config = training_config(tiny_model, trained.server.root / "pairs.jsonl", "never-saved")
    with acting_worker(trained.server):
        job_id = trained.server.train(config)
        client.stop(job_id)
    with pytest.raises(InvalidRequestError, match="has no model to chat with"):
        client.load_chat_model(job_id)


@pytest.mark.long
def test_a_fully_trained_model_needs_its_base_model_loaded_as_well(
    client: Client, trained: Trained, tiny_model: Path
) -> None:
    whole = Trained.on(trained.server, tiny_model, "whole", use_lora=False, learning_rate=1e-3)
    alone = client.load_chat_model(whole.job_id, with_base=False)
    process = chat_process(trained.server)
    assert not alone.with_base
    drawn = {"temperature": 1.0, "top_p": 1.0}
    tuned = text_of(client, whole, **drawn)
    assert chat_process(trained.server) == process
    base = text_of(client, whole, side="base", **drawn)
    assert client.chat_state().with_base
    assert base == text_of(client, trained, side="base", **drawn) != tuned
    client.unload_chat_model()
    assert client.load_chat_model(whole.job_id).with_base
    process = chat_process(trained.server)
    assert [text_of(client, whole, side=side, **drawn) for side in ("tuned", "base")] == [tuned, base]
    assert chat_process(trained.server) == process


@pytest.mark.long
def test_a_replaced_model_answers_from_its_new_folder(client: Client, trained: Trained, tiny_model: Path) -> None:
    first = Trained.on(trained.server, tiny_model, "twice")
    before, base = text_of(client, first), text_of(client, first, side="base")
    client.unload_chat_model()
    second = Trained.on(trained.server, tiny_model, "twice", max_steps=1, learning_rate=1e-9)
    assert text_of(client, second) == base
    assert text_of(client, first) == before != base
    # As an older version stored it.
    _change(trained.server, "UPDATE jobs SET output_dir = ? WHERE job_id = ?", (str(first.folder), first.job_id))
    with pytest.raises(InvalidRequestError, match=f"what {second.job_id} trained later"):
        client.load_chat_model(first.job_id)


def test_blind_votes_are_counted_and_can_be_trained_on(client: Client, trained: Trained, tiny_model: Path) -> None:
    given = {"base": "I can't say.", "tuned": "It is 6. The runes agree."}
    made = [
        client.compare(ComparisonRequest.model_validate(trained.ask(f"What is {number} plus 3?", answers=given)))
        for number in range(24)
    ]
    assert {made.left for made in made} == set(given.values())  # both orders: never is one in 8 million
    assert all((one.better, one.tuned, one.winner) == (None, None, None) for one in made)
    with pytest.raises(InvalidRequestError, match="no vote"):
        client.save_votes(trained.job_id)
    for one in made[:10]:
        better = "left" if one.left == given["tuned"] else "right"
        voted = client.vote(one.comparison_id, better)
        assert (voted.tuned, voted.winner, voted.better) == (better, "tuned", better)
    assert client.vote(made[10].comparison_id, "tie").winner == "tie"
    assert client.vote(made[11].comparison_id, "left" if made[11].left == given["base"] else "right").winner == "base"
    with pytest.raises(ConflictError, match="a vote") as refused:
        client.vote(made[0].comparison_id, "tie")
    assert not isinstance(refused.value, InsufficientMemoryError)
    listed = client.comparisons(trained.job_id, limit=5)
    assert (listed.count, listed.total) == (5, 24)
    assert [one.comparison_id for one in listed.comparisons] == [one.comparison_id for one in made[:-6:-1]]
    tally = listed.tally
    assert (tally.wins, tally.losses, tally.ties, tally.open) == (10, 1, 1, 12)
    assert tally.win_rate == pytest.approx(10 / 11)

    upload = client.save_votes(trained.job_id)
    assert upload.total_rows == 11
    source = {"source_type": "upload", "dataset_id": upload.dataset_id}
    rows = client.preview(DatasetConfig.model_validate({"source": source})).samples
    assert (rows[0]["chosen"], rows[0]["rejected"]) == (given["tuned"], given["base"])
    assert rows[0]["prompt"] == [{"role": "user", "content": "What is 0 plus 3?"}]
    pairs = trained.server.root / "pairs.jsonl"
    config = training_config(tiny_model, pairs, "on-votes", max_steps=1, eval_steps=0)
    on_votes = trained.server.train({**config, "dataset": {"source": source, "test_size": 0}})
    assert trained.server.until_ended(on_votes).status == "completed"


def test_a_comparison_generates_what_each_side_answers(client: Client, trained: Trained) -> None:
    made = client.compare(ComparisonRequest.model_validate(trained.ask()))
    tuned, base = (text_of(client, trained, side=side).strip() for side in ("tuned", "base"))
    assert {made.left, made.right} == {tuned, base}
    voted = client.vote(made.comparison_id, "left")
    assert (voted.tuned == "left") == (made.left == tuned)


async def _asynchronously(trained: Trained) -> list[str]:
    async with AsyncClient(trained.server.url) as client:
        request = AnswerRequest.model_validate(trained.ask(max_new_tokens=4))
        kinds = [event.type async for event in client.answer(request)]
        with pytest.raises(NotFoundError):
            async for _ in client.answer(request.model_copy(update={"job_id": "job_none"})):
                pass
        return kinds


def test_the_asynchronous_client_reads_line_by_line(client: Client, trained: Trained) -> None:
    import asyncio

    kinds = asyncio.run(_asynchronously(trained))
    assert (kinds[0], kinds[-1]) == ("begin", "end")


def test_the_loaded_model_is_reported_and_unloaded(client: Client, trained: Trained) -> None:
    client.unload_chat_model()
    assert client.chat_state().state == "empty"
    loaded = client.load_chat_model(trained.job_id)
    assert (loaded.state, loaded.job_id, loaded.with_base, loaded.gpu) == ("ready", trained.job_id, True, None)
    assert loaded.memory_mb is not None
    assert loaded.needed_mb is not None
    assert loaded.needed_mb > loaded.memory_mb > 50
    assert loaded.idle_until is not None
    process = chat_process(trained.server)
    assert process is not None
    assert client.load_chat_model(trained.job_id).idle_until is not None
    assert chat_process(trained.server) == process
    assert client.unload_chat_model().state == "empty"
    assert has_ended(process)


@pytest.mark.long
def test_a_run_gets_the_memory_and_the_answer_ends_with_the_reason(
    new_server: Callable[..., Server], tiny_model: Path
) -> None:
    server = new_server()
    trained = Trained.on(server, tiny_model, "beside-a-run", max_steps=2)
    whole = Trained.on(server, tiny_model, "whole", max_steps=2, use_lora=False)
    config = training_config(tiny_model, pairs_file(server.root / "pairs.jsonl"), "big", max_steps=2)
    with server.client() as client:
        client.load_chat_model(trained.job_id)
        small = server.train(config)
        server.until_ended(small)
        assert client.chat_state().state == "ready"
        running = server.train({**config, "max_steps": 2000, "num_epochs": 1000})
        server.until_step(running, 1)
        waiting = server.train(config)
        _say_it_needs(server, waiting, 10**7)
        client.stop(running)
        server.until_ended(waiting)
        assert client.chat_state().state == "empty"
        # The running job has not allocated the memory that it is expected to need.
        running = server.train({**config, "max_steps": 2000, "num_epochs": 1000})
        server.until_step(running, 1)
        _say_it_needs(server, running, 10**7)
        with pytest.raises(InsufficientMemoryError, match="only 0 MiB are free; send force: true"):
            client.load_chat_model(trained.job_id)
        with pytest.raises(InsufficientMemoryError, match="MiB of RAM"):
            list(client.answer(AnswerRequest.model_validate(trained.ask())))
        _assert_it_can_be_forced(server, trained)
        assert client.chat_state().state == "empty"
        assert client.load_chat_model(trained.job_id, force=True).state == "ready"
        assert list(client.answer(AnswerRequest.model_validate(trained.ask())))
        assert not client.load_chat_model(whole.job_id, with_base=False, force=True).with_base
        assert list(client.answer(AnswerRequest.model_validate(whole.ask(side="base"))))
        assert client.chat_state().with_base
        with pytest.raises(InsufficientMemoryError):
            client.load_chat_model(trained.job_id)
        client.unload_chat_model()
        with pytest.raises(InsufficientMemoryError):
            client.load_chat_model(whole.job_id)
        client.load_chat_model(whole.job_id, force=True)
    process = chat_process(server)
    assert process is not None
    server.kill()
    until(lambda: has_ended(process), 20, "the end of an answer without a client")


def _assert_it_can_be_forced(server: Server, trained: Trained) -> None:
    bodies = {"load": {"job_id": trained.job_id}, "answer": trained.ask(), "comparisons": trained.ask()}
    with server.http() as http:
        for path, body in bodies.items():
            refused = http.post(f"/chat/{path}", json=body)
            detail = refused.json()["detail"]
            assert "send force: true" in detail.pop("message")
            assert (refused.status_code, detail) == (409, {"errors": [], "warnings": [], "can_force": True}), path


def _say_it_needs(server: Server, job_id: str, mebibytes: int) -> None:
    _change(server, "UPDATE jobs SET memory_needed_mb = ? WHERE job_id = ?", (mebibytes, job_id))


def _change(server: Server, statement: str, values: tuple[Any, ...]) -> None:
    database = Database(f"sqlite:///{server.root / 'data' / 'merlina.db'}")
    with database.write() as connection:
        connection.exec_driver_sql(statement, values)
    database.close()
