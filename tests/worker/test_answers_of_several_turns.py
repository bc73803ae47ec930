"""Answers of several turns are trained as every chat format renders the whole conversation, or refused."""

from __future__ import annotations

from typing import Any

import pytest

from merlina.data.conversation import Message, Pair, UnusableRowError, assistant
from merlina.data.rendering.chat_formats import formatter
from merlina.schemas.datasets.config import CustomTemplates, DatasetFormat, FormatType
from merlina.worker.encoding import PairEncoder
from tests.tiny import build_tiny_tokenizer
from tests.worker.chat_templates import MOVES_SYSTEM, OPENS_THOUGHT, PLAIN

pytestmark = pytest.mark.slow

ALL = PLAIN | OPENS_THOUGHT | MOVES_SYSTEM
PROMPT = (Message("user", "Name a river."),)
NEXT = Message("user", "And another?")
CHOSEN = Message("assistant", "The Po.", earlier=(assistant("The Rhine."), NEXT))
REJECTED = Message("assistant", "No.", earlier=(assistant("A hill."), NEXT))
PAIRS = (Pair(PROMPT, CHOSEN, REJECTED), Pair(PROMPT, CHOSEN, assistant("A hill.")), Pair(PROMPT, CHOSEN, None))
CUSTOM = CustomTemplates(user_prefix="[U] ", user_suffix="\n", assistant_prefix="[A] ", assistant_suffix="</a>")


CHATML = "The Rhine.<|im_end|>\n<|im_start|>user\nAnd another?<|im_end|>\n<|im_start|>assistant\nThe Po.<|im_end|>"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("chatml", CHATML),
        ("qwen3", CHATML),
        (
            "llama3",
            "The Rhine.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nAnd another?<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\nThe Po.<|eot_id|>",
        ),
        ("mistral", " The Rhine.</s>[INST] And another? [/INST] The Po.</s>"),
        ("custom", "The Rhine.</a>[U] And another?\n[A] The Po.</a>"),
    ],
)
def test_all_text_after_the_common_prompt_is_the_answer(name: FormatType, expected: str) -> None:
    render = formatter(DatasetFormat(format_type=name, custom_templates=CUSTOM if name == "custom" else None), None)
    prompt = render(Pair(PROMPT, assistant("x"), None)).prompt
    for pair in PAIRS:
        rendered = render(pair)
        assert (rendered.prompt, rendered.chosen) == (prompt, expected)
    assert render(PAIRS[0]).rejected == expected.replace("The Rhine.", "A hill.").replace("The Po.", "No.")


def test_a_format_that_changes_the_prompt_refuses_them() -> None:
    render = formatter(DatasetFormat(format_type="qwen3", enable_thinking=False), None)
    with pytest.raises(UnusableRowError, match="an answer has several turns, and the chat format renders the prompt"):
        render(PAIRS[0])


def test_thoughts_of_all_turns_are_reported_if_they_are_not_trained() -> None:
    earlier = (Message("assistant", "The Rhine.", "It is long."), NEXT)
    rendered = formatter(DatasetFormat(), None)(Pair(PROMPT, Message("assistant", "The Po.", earlier=earlier), None))
    assert "reasoning_unused" in rendered.finding_kinds
    assert "long" not in str(rendered.chosen)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return build_tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def _messages(turns: tuple[Message, ...], *, typed: bool) -> list[dict[str, Any]]:
    return [
        {"role": turn.role, "content": [{"type": "text", "text": turn.content}] if typed else turn.content}
        for turn in turns
    ]


# It renders the turns before the last question in another way.
REFUSING = {"index of the last question"}


@pytest.mark.parametrize("name", ALL)
def test_the_text_is_that_of_the_chat_template(tokenizer: Any, name: str) -> None:
    tokenizer.chat_template = ALL[name]
    encoder = PairEncoder(tokenizer, "tiny", DatasetFormat(format_type="tokenizer"))
    if name in REFUSING:
        with pytest.raises(UnusableRowError, match="an answer has several turns"):
            encoder.encode(PAIRS[0])
        return
    for pair in PAIRS:
        made = encoder.encode(pair).text
        for answer, text in ((pair.chosen, made.chosen), (pair.rejected, made.rejected)):
            if answer is not None:
                whole = _messages((*PROMPT, *answer.turns), typed=name == "typed parts")
                expected = str(tokenizer.apply_chat_template(whole, tokenize=False))
                assert (made.prompt + str(text)).rstrip() == expected.rstrip()
