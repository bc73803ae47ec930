"""The OpenAI-compatible API, used with OpenAI's own client."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI

from tests.chat.trained import QUESTION, Trained, reference_answer
from tests.harness import Server, pairs_file, training_config

pytestmark = pytest.mark.slow

MESSAGES: list[Any] = [{"role": "user", "content": QUESTION}]
GREEDY: dict[str, Any] = {"messages": MESSAGES, "temperature": 0, "max_completion_tokens": 20}


def client_of(server: Server, api_key: str = "none") -> OpenAI:
    return OpenAI(base_url=f"{server.url}/v1", api_key=api_key, max_retries=0)


@pytest.fixture(scope="module")
def client(trained: Trained) -> Iterator[OpenAI]:
    with client_of(trained.server) as client:
        yield client
    httpx.delete(f"{trained.server.url}/chat", timeout=60)


@pytest.fixture(scope="module")
def answers(trained: Trained, tiny_model: Path) -> dict[str, str]:
    """The greedy answers of both sides, computed with transformers and peft alone."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(trained.folder)
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    tuned = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), trained.folder)
    return {
        name: reference_answer(model, tokenizer, MESSAGES, 20) for name, model in (("base", base), ("tuned", tuned))
    }


def test_models_are_listed_and_answer_by_name_by_job_and_by_base_model(
    client: OpenAI, trained: Trained, tiny_model: Path, answers: dict[str, str]
) -> None:
    listed = {model.id: model for model in client.models.list()}
    assert listed["to-chat-with"].to_dict() == client.models.retrieve("to-chat-with").to_dict()
    assert listed["to-chat-with"].to_dict()["parent"] == str(tiny_model)
    assert listed[str(tiny_model)].owned_by == "base"
    assert answers["base"] != answers["tuned"]
    for name, side in (("to-chat-with", "tuned"), (trained.job_id, "tuned"), (str(tiny_model), "base")):
        completion = client.chat.completions.create(model=name, **GREEDY)
        (choice,) = completion.choices
        assert (choice.message.content, choice.message.role) == (answers[side], "assistant")
        assert choice.finish_reason in ("stop", "length")
        assert completion.model == name


def test_a_stream_has_the_same_answer_in_pieces(client: OpenAI, answers: dict[str, str]) -> None:
    chunks = list(
        client.chat.completions.create(
            model="to-chat-with",
            stream=True,
            stream_options={"include_usage": True, "include_obfuscation": False},
            **GREEDY,
        )
    )
    *pieces, last = chunks
    texts = [piece.choices[0].delta.content or "" for piece in pieces]
    assert "".join(texts) == answers["tuned"]
    assert len([text for text in texts if text]) > 3
    assert pieces[0].choices[0].delta.role == "assistant"
    assert [piece.choices[0].finish_reason for piece in pieces[:-1]] == [None] * (len(pieces) - 1)
    assert pieces[-1].choices[0].finish_reason in ("stop", "length")
    whole = client.chat.completions.create(model="to-chat-with", **GREEDY)
    assert last.choices == []
    assert last.usage == whole.usage
    assert last.usage is not None
    assert last.usage.total_tokens == last.usage.prompt_tokens + last.usage.completion_tokens


def test_an_answer_is_sent_back_as_the_client_has_it(client: OpenAI, trained: Trained, tiny_model: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(trained.folder)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), trained.folder)
    # With a stop text, since the helpers refuse answers that reach the maximum length.
    ends: dict[str, Any] = {**GREEDY, "model": "to-chat-with", "stop": ["a", "e", " ", "o"]}
    message = client.chat.completions.create(**ends).choices[0].message
    with client.chat.completions.stream(**ends) as stream:
        streamed = stream.get_final_completion().choices[0].message
    parsed = client.chat.completions.parse(**ends).choices[0].message
    following = {"role": "user", "content": "And 4 plus 4?"}
    turns = [*MESSAGES, {"role": "assistant", "content": message.content}, following]
    expected = reference_answer(model, tokenizer, turns, 20)
    # The object itself, its fields that are set, and all of its fields: tool_calls, audio and others are null.
    for sent in (message, message.to_dict(), message.model_dump(), streamed, parsed):
        completion = client.chat.completions.create(
            model="to-chat-with", messages=[*MESSAGES, sent, following], temperature=0, max_completion_tokens=20
        )
        assert completion.choices[0].message.content == expected


@pytest.mark.parametrize("sent", [{"content": ""}, {"content": None}, {"content": []}, {}])
def test_an_empty_answer_can_be_sent_back(
    client: OpenAI, trained: Trained, tiny_model: Path, sent: dict[str, Any]
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(trained.folder)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), trained.folder)
    turns: list[Any] = [*MESSAGES, {"role": "assistant", "content": ""}, {"role": "user", "content": "Continue."}]
    expected = reference_answer(model, tokenizer, turns, 20)
    turns[1] = {"role": "assistant", **sent}
    completion = client.chat.completions.create(
        model="to-chat-with", messages=turns, temperature=0, max_completion_tokens=20
    )
    assert completion.choices[0].message.content == expected


def test_fields_that_are_not_supported_may_have_their_neutral_value(client: OpenAI, answers: dict[str, str]) -> None:
    neutral: dict[str, Any] = {
        "frequency_penalty": 0.0,
        "presence_penalty": 0,
        "logit_bias": {},
        "response_format": {"type": "text"},
        "modalities": ["text"],
        "tools": [],
        "tool_choice": "none",
        "parallel_tool_calls": True,
        "reasoning_effort": "none",
        "functions": [],
        "function_call": "none",
        "verbosity": "medium",
        "service_tier": "auto",
        "prediction": None,
        "audio": None,
        "top_logprobs": 0,
        "n": 1,
    }
    for changes in (neutral, dict.fromkeys(neutral)):
        completion = client.chat.completions.create(model="to-chat-with", **GREEDY, **changes)
        assert completion.choices[0].message.content == answers["tuned"]


def test_more_tokens_may_be_allowed_than_an_answer_has(client: OpenAI, trained: Trained) -> None:
    request = {**GREEDY, "max_completion_tokens": 100_000}
    completion = client.chat.completions.create(model="to-chat-with", **request)
    assert completion.usage is not None
    assert completion.usage.completion_tokens <= 8192


def test_an_answer_ends_before_a_stop_text(client: OpenAI, answers: dict[str, str]) -> None:
    answer = answers["tuned"]
    stop = answer[len(answer) // 2 :][:3]
    expected = answer[: answer.index(stop)]
    for given in (stop, ["not in the answer", stop]):
        (choice,) = client.chat.completions.create(model="to-chat-with", stop=given, **GREEDY).choices
        assert (choice.message.content, choice.finish_reason) == (expected, "stop")
    chunks = client.chat.completions.create(model="to-chat-with", stop=stop, stream=True, **GREEDY)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == expected


def test_logprobs_are_those_of_the_model_before_sampling(client: OpenAI, trained: Trained, tiny_model: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    completion = client.chat.completions.create(
        model="to-chat-with", messages=MESSAGES, temperature=0.5, seed=3, max_completion_tokens=8, logprobs=True,
        top_logprobs=4,
    )  # fmt: skip
    (choice,) = completion.choices
    assert choice.logprobs is not None
    tokens = choice.logprobs.content
    assert tokens
    tokenizer = AutoTokenizer.from_pretrained(trained.folder)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), trained.folder)
    text = tokenizer.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    ids = tokenizer.encode(text, add_special_tokens=False)
    for token in tokens:
        with torch.no_grad():
            expected = model(torch.tensor([ids])).logits[0, -1].float().log_softmax(-1)
        highest = expected.topk(4)
        assert [top.logprob for top in token.top_logprobs] == pytest.approx(highest.values.tolist(), abs=1e-4)
        assert [top.token for top in token.top_logprobs] == [tokenizer.decode([each]) for each in highest.indices]
        (drawn,) = [each for each in range(len(expected)) if abs(float(expected[each]) - token.logprob) < 1e-5]
        assert tokenizer.decode([drawn]) == token.token
        assert token.bytes == (None if "\N{REPLACEMENT CHARACTER}" in token.token else list(token.token.encode()))
        ids.append(drawn)
    streamed = client.chat.completions.create(
        model="to-chat-with", messages=MESSAGES, temperature=0.5, seed=3, max_completion_tokens=8, logprobs=True,
        top_logprobs=4, stream=True,
    )  # fmt: skip
    parts = [chunk.choices[0].logprobs for chunk in streamed]
    assert [token for part in parts if part for token in part.content or ()] == tokens


def test_a_seed_repeats_an_answer_and_none_does_not(client: OpenAI) -> None:
    def texts(**options: Any) -> set[str | None]:
        request: dict[str, Any] = {"messages": MESSAGES, "temperature": 2, "max_completion_tokens": 12, **options}
        found = [client.chat.completions.create(model="to-chat-with", **request) for _ in range(3)]
        return {each.choices[0].message.content for each in found}

    assert len(texts(seed=7)) == 1
    assert len(texts()) > 1


@pytest.mark.parametrize(
    ("change", "field", "said"),
    [
        ({"n": 2}, "n", "2"),
        ({"messages": [{"role": "assistant", "content": "Hi"}]}, "messages", "must be 'user'"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, None, "text"),
        ({"top_logprobs": 2}, "top_logprobs", "needs logprobs"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop", "4"),
        ({"stop": ""}, "stop.0", "at least 1"),
        ({"presence_penalty": 1}, "presence_penalty", "leave it out or send 0"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools", "is not supported"),
        ({"response_format": {"type": "json_object"}}, "response_format", '{"type": "text"}'),
        ({"extra_body": {"top_k": 3}}, "top_k", "unknown"),
    ],
)
def test_errors_have_the_form_that_clients_expect(
    client: OpenAI, change: dict[str, Any], field: str | None, said: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="to-chat-with", **{**GREEDY, **change})
    assert isinstance(caught.value.body, dict)
    assert said in caught.value.body["message"]
    assert field is None or caught.value.param == field
    assert caught.value.type == "invalid_request_error"


def test_of_jobs_with_one_name_or_base_model_the_newest_that_needs_least_memory_answers(
    new_server: Callable[..., Server], tiny_model: Path
) -> None:
    server = new_server()
    pairs = pairs_file(server.root / "pairs.jsonl")

    def train(output_name: str, **changes: Any) -> str:
        job_id = server.train(training_config(tiny_model, pairs, output_name, max_steps=1, eval_steps=0, **changes))
        assert server.until_ended(job_id).status == "completed"
        return job_id

    train("first")
    adapter = train("second")
    full = train("first", use_lora=False, learning_rate=1e-5)
    with client_of(server) as client, server.http() as http:
        listed = [(model.id, model.to_dict()["job_id"]) for model in client.models.list()]
        assert listed == [("first", full), ("second", adapter), (str(tiny_model), full)]
        client.chat.completions.create(model=str(tiny_model), **GREEDY)
        assert http.get("/chat").json()["job_id"] == adapter
        client.chat.completions.create(model="first", **GREEDY)
        assert http.get("/chat").json()["with_base"] is False
        # It was loaded with its base model on request, so the base model needs no other.
        http.post("/chat/load", json={"job_id": full, "with_base": True}).raise_for_status()
        client.chat.completions.create(model=str(tiny_model), **GREEDY)
        assert http.get("/chat").json()["job_id"] == full


def test_an_unknown_model_and_a_wrong_key_are_refused(
    client: OpenAI, new_server: Callable[..., Server], tiny_model: Path
) -> None:
    for stream in (False, True):
        with pytest.raises(openai.NotFoundError, match="There is no finished model 'gpt-4'") as caught:
            client.chat.completions.create(model="gpt-4", stream=stream, **GREEDY)
        assert caught.value.code == "model_not_found"
    server = new_server(API_KEY="secret-key-1")
    with client_of(server, "wrong") as wrong, pytest.raises(openai.AuthenticationError):
        wrong.models.list()
    with client_of(server, "secret-key-1") as right:
        assert list(right.models.list()) == []
