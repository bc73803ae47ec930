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
from tests.harness import Server

pytestmark = pytest.mark.slow

MESSAGES: list[Any] = [{"role": "user", "content": QUESTION}]
GREEDY: dict[str, Any] = {"messages": MESSAGES, "temperature": 0, "max_completion_tokens": 20}


def client_of(server: Server, api_key: str = "none") -> OpenAI:
    return OpenAI(base_url=f"{server.url}/v1", api_key=api_key, max_retries=0)


@pytest.fixture(scope="module")
def client(trained: Trained) -> Iterator[OpenAI]:
    with client_of(trained.server) as client:
        yield client
    httpx.delete(f"{trained.server.url}/chat")


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
            model="to-chat-with", stream=True, stream_options={"include_usage": True}, **GREEDY
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
        ({"presence_penalty": 1}, "presence_penalty", "unknown"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools", "unknown"),
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
