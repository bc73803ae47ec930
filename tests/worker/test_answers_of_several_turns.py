"""Answers of several turns are trained as every chat format renders the whole conversation, or refused."""

from __future__ import annotations

from dataclasses import replace
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


THOUGHT = Message("assistant", "The Rhine.", "It is long.")
INLINE = assistant("<think>\nIt is long.\n</think>\n\nThe Rhine.")
EMPTY = "<think>\n\n</think>\n\n"


@pytest.mark.parametrize("first", [THOUGHT, INLINE])
@pytest.mark.parametrize("last", [assistant("The Po."), Message("assistant", "The Po.", "Also long.")])
def test_qwen3_trains_the_reasoning_of_every_turn(first: Message, last: Message) -> None:
    answer = replace(last, earlier=(first, NEXT))
    rendered = formatter(DatasetFormat(format_type="qwen3"), None)(Pair(PROMPT, answer, assistant("No.")))
    expected = CHATML.replace("The Rhine.", INLINE.content)
    if last.reasoning:
        expected = expected.replace("The Po.", "<think>\nAlso long.\n</think>\n\nThe Po.")
    assert rendered.chosen == expected
    assert "reasoning_unused" not in rendered.finding_kinds


@pytest.mark.parametrize("first", [assistant("The Rhine."), THOUGHT, INLINE])
def test_without_thinking_every_turn_of_qwen3_follows_empty_reasoning(first: Message) -> None:
    answer = Message("assistant", "The Po.", earlier=(first, NEXT))
    render = formatter(DatasetFormat(format_type="qwen3", enable_thinking=False), None)
    rendered = render(Pair(PROMPT, answer, assistant("No.")))
    assert rendered.prompt == f"<|im_start|>user\nName a river.<|im_end|>\n<|im_start|>assistant\n{EMPTY}"
    assert rendered.chosen == CHATML.replace("The Po.", f"{EMPTY}The Po.")
    assert rendered.rejected == "No.<|im_end|>"
    assert ("reasoning_unused" in rendered.finding_kinds) == (first in (THOUGHT, INLINE))


@pytest.mark.parametrize(
    ("spec", "first"),
    [
        (DatasetFormat(), THOUGHT),
        (DatasetFormat(format_type="llama3"), THOUGHT),
        (DatasetFormat(format_type="qwen3", enable_thinking=False), THOUGHT),
        (DatasetFormat(format_type="qwen3", enable_thinking=False), INLINE),
    ],
)
def test_reasoning_of_any_turn_is_reported_if_it_is_not_trained(spec: DatasetFormat, first: Message) -> None:
    rendered = formatter(spec, None)(Pair(PROMPT, Message("assistant", "The Po.", earlier=(first, NEXT)), None))
    assert "reasoning_unused" in rendered.finding_kinds
    assert "long" not in str(rendered.chosen)


@pytest.mark.parametrize("name", [name for name in ALL if name != "index of the last question"])
@pytest.mark.parametrize("first", [THOUGHT, INLINE])
def test_a_chat_template_trains_the_reasoning_of_an_earlier_turn_or_it_is_reported(
    tokenizer: Any, name: str, first: Message
) -> None:
    tokenizer.chat_template = ALL[name]
    encoder = PairEncoder(tokenizer, "tiny", DatasetFormat(format_type="tokenizer"))
    text = encoder.encode(Pair(PROMPT, Message("assistant", "The Po.", earlier=(first, NEXT)), None)).text
    assert ("It is long." in str(text.chosen)) != ("reasoning_unused" in text.finding_kinds)


def test_an_earlier_turn_of_reasoning_alone_is_refused_without_thinking() -> None:
    earlier = (assistant("<think>\nIt is long.\n</think>"), NEXT)
    render = formatter(DatasetFormat(format_type="qwen3", enable_thinking=False), None)
    with pytest.raises(UnusableRowError, match="an answer consists of its reasoning alone"):
        render(Pair(PROMPT, Message("assistant", "The Po.", earlier=earlier), None))


def test_answers_that_differ_only_in_text_that_the_template_omits_are_refused(tokenizer: Any) -> None:
    tokenizer.chat_template = ALL["thought of the last turn"]
    encoder = PairEncoder(tokenizer, "tiny", DatasetFormat(format_type="tokenizer"))
    others = replace(THOUGHT, reasoning="It is short.")
    chosen, rejected = (Message("assistant", "The Po.", earlier=(first, NEXT)) for first in (THOUGHT, others))
    with pytest.raises(UnusableRowError, match="renders both answers as the same text"):
        encoder.encode(Pair(PROMPT, chosen, rejected))

    # Identical answers are a finding of their own, also with other whitespace.
    tokenizer.chat_template = ALL["trims"]
    encoder = PairEncoder(tokenizer, "tiny", DatasetFormat(format_type="tokenizer"))
    spaced = replace(CHOSEN, earlier=(assistant("The Rhine. "), NEXT))
    same = Pair(PROMPT, CHOSEN, spaced)
    assert same.has_identical_answers
    assert encoder.encode(same).text.chosen == encoder.encode(same).text.rejected
    assert not Pair(PROMPT, CHOSEN, replace(spaced, earlier=(assistant("The Elbe."), NEXT))).has_identical_answers


SYSTEM = Message("system", "Be brief.")


@pytest.mark.parametrize("name", ["chatml", "qwen3", "llama3", "mistral"])
def test_system_as_user_folds_the_system_turns_of_an_answer(name: FormatType) -> None:
    render = formatter(DatasetFormat(format_type=name, system_as_user=True), None)
    earlier = CHOSEN.earlier[0]

    def text(*turns: Message) -> str:
        return str(render(Pair(PROMPT, Message("assistant", "The Po.", earlier=(earlier, *turns)), None)).chosen)

    assert text(SYSTEM, NEXT) == text(Message("user", "Be brief.\n\nAnd another?"))
    assert text(NEXT, SYSTEM) == text(NEXT, Message("user", "Be brief."))
    assert "Be brief." in text(SYSTEM)


def test_a_chat_template_without_a_system_role_gets_none_of_an_answer(tokenizer: Any) -> None:
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    pair = Pair(PROMPT, Message("assistant", "The Po.", earlier=(assistant("The Rhine."), SYSTEM, NEXT)), None)
    with pytest.raises(UnusableRowError, match=r"format\.system_as_user: true puts the system message into"):
        PairEncoder(tokenizer, "tiny", DatasetFormat(format_type="tokenizer")).encode(pair)
    encoder = PairEncoder(tokenizer, "tiny", DatasetFormat(format_type="tokenizer", system_as_user=True))
    assert encoder.encode(pair).text.chosen == CHATML.replace("And another?", "Be brief.\n\nAnd another?")


def test_mistral_keeps_a_system_turn_that_no_user_turn_follows() -> None:
    answer = Message("assistant", "The Po.", earlier=(assistant("The Rhine."), SYSTEM))
    rendered = formatter(DatasetFormat(format_type="mistral"), None)(Pair(PROMPT, answer, None))
    assert rendered.chosen == " The Rhine.</s>[INST] Be brief. [/INST] The Po.</s>"


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
