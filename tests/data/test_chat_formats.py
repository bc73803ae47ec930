from __future__ import annotations

from typing import get_args

import pytest

from merlina.data.conversation import Message, Pair, UnusableRowError, assistant
from merlina.data.rendering.chat_formats import FORMATS, MARKERS, formatter
from merlina.errors import DataError
from merlina.schemas.datasets.config import CustomTemplates, DatasetFormat, FormatType

TURN = (Message("user", "P"),)
WITH_SYSTEM = (Message("system", "S"), *TURN)
SEVERAL = (Message("system", "S"), Message("user", "P"), Message("assistant", "A"), Message("user", "Q"))


def render(spec: DatasetFormat, prompt: tuple[Message, ...], reasoning: str | None = None) -> tuple[str, str, str]:
    rendered = formatter(spec, None)(
        Pair(prompt, Message("assistant", "C", reasoning), Message("assistant", "R", reasoning))
    )
    return rendered.prompt, rendered.chosen, rendered.rejected


def test_every_format_in_the_schema_is_implemented() -> None:
    assert {*FORMATS, "tokenizer"} == set(get_args(FormatType))
    assert set(MARKERS) < set(FORMATS)


@pytest.mark.parametrize(
    ("name", "prompt", "expected", "answer"),
    [
        ("chatml", TURN, "<|im_start|>user\nP<|im_end|>\n<|im_start|>assistant\n", "{}<|im_end|>"),
        (
            "chatml",
            WITH_SYSTEM,
            "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nP<|im_end|>\n<|im_start|>assistant\n",
            "{}<|im_end|>",
        ),
        (
            "chatml",
            SEVERAL,
            "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nP<|im_end|>\n<|im_start|>assistant\nA<|im_end|>\n"
            "<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n",
            "{}<|im_end|>",
        ),
        (
            "llama3",
            WITH_SYSTEM,
            "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\nP<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
            "{}<|eot_id|>",
        ),
        ("mistral", TURN, "<s>[INST] P [/INST]", " {}</s>"),
        ("mistral", WITH_SYSTEM, "<s>[INST] S\n\nP [/INST]", " {}</s>"),
        ("mistral", SEVERAL, "<s>[INST] S\n\nP [/INST] A</s>[INST] Q [/INST]", " {}</s>"),
    ],
)
def test_formats_match_the_documented_table(
    name: FormatType, prompt: tuple[Message, ...], expected: str, answer: str
) -> None:
    text = render(DatasetFormat(format_type=name), prompt)
    assert text == (expected, answer.format("C"), answer.format("R"))


def test_qwen3_includes_reasoning_only_if_enabled() -> None:
    on, off = (DatasetFormat(format_type="qwen3", enable_thinking=thinks) for thinks in (True, False))
    beginning = "<|im_start|>user\nP<|im_end|>\n<|im_start|>assistant\n"
    assert render(on, TURN) == (beginning, "C<|im_end|>", "R<|im_end|>")
    thought = "<think>\nT\n</think>\n\n"
    assert render(on, TURN, "T") == (beginning, f"{thought}C<|im_end|>", f"{thought}R<|im_end|>")
    assert render(off, TURN, "T") == (f"{beginning}<think>\n\n</think>\n\n", "C<|im_end|>", "R<|im_end|>")


def test_custom_adds_its_six_texts_unchanged() -> None:
    templates = CustomTemplates(
        system_prefix="[S {p}] ",
        system_suffix="\n",
        user_prefix="[U] ",
        user_suffix="\n",
        assistant_prefix="[A] ",
        assistant_suffix="</a>",
    )
    spec = DatasetFormat(format_type="custom", custom_templates=templates)
    assert render(spec, SEVERAL) == ("[S {p}] S\n[U] P\n[A] A</a>[U] Q\n[A] ", "C</a>", "R</a>")


def test_the_format_tokenizer_needs_a_template() -> None:
    with pytest.raises(DataError, match="chat template"):
        formatter(DatasetFormat(format_type="tokenizer"), None)


def test_raw_adds_nothing_and_needs_a_single_text() -> None:
    spec = DatasetFormat(format_type="raw")
    assert render(spec, (Message("user", "<U>Hi<A>"),)) == ("<U>Hi<A>", "C", "R")
    with pytest.raises(UnusableRowError, match="the prompt has 2 messages, and the format 'raw' adds no markers"):
        render(spec, WITH_SYSTEM)


@pytest.mark.parametrize("name", ["chatml", "llama3", "mistral", "qwen3", "raw"])
def test_tools_are_refused_by_formats_that_cannot_represent_them(name: FormatType) -> None:
    called = Message("assistant", "", tool_calls=({"function": {"name": "f"}},))
    for pair in (
        Pair(TURN, assistant("C"), None, tools=({"name": "f"},)),
        Pair(TURN, called, None),
        Pair((*TURN, called, Message("tool", "1")), assistant("C"), None),
    ):
        with pytest.raises(UnusableRowError, match=f"it has tools, which the format '{name}' cannot represent"):
            formatter(DatasetFormat(format_type=name), None)(pair)


@pytest.mark.parametrize("name", ["chatml", "llama3", "mistral", "qwen3", "raw"])
def test_arguments_for_a_chat_template_are_refused_by_formats_without_one(name: FormatType) -> None:
    pair = Pair(TURN, assistant("C"), None, template_arguments={"enable_thinking": False})
    with pytest.raises(UnusableRowError, match=f"it has chat_template_kwargs, which the format '{name}' cannot pass"):
        formatter(DatasetFormat(format_type=name), None)(pair)


@pytest.mark.parametrize("name", ["chatml", "llama3", "mistral"])
def test_system_as_user_puts_the_system_message_into_the_next_question(name: FormatType) -> None:
    folded = (Message("user", "S\n\nP"), Message("assistant", "A"), Message("user", "Q"))
    expected = render(DatasetFormat(format_type=name), folded)
    assert render(DatasetFormat(format_type=name, system_as_user=True), SEVERAL) == expected


@pytest.mark.parametrize(
    ("spec", "is_unused"),
    [
        (DatasetFormat(format_type="chatml"), True),
        (DatasetFormat(format_type="qwen3"), False),
        (DatasetFormat(format_type="qwen3", enable_thinking=False), True),
    ],
)
def test_reasoning_that_is_not_trained_is_remarked_on(spec: DatasetFormat, is_unused: bool) -> None:
    rendered = formatter(spec, None)(Pair(TURN, Message("assistant", "C", "T"), assistant("R")))
    assert ("reasoning_unused" in rendered.finding_kinds) == is_unused
    assert ("T" in rendered.chosen) != is_unused


@pytest.mark.parametrize(
    ("answer", "thinks", "expected"),
    [
        ("<think>\n\n</think>\n\nA", False, "A<|im_end|>"),
        ("<think>t</think>A", True, "<think>t</think>A<|im_end|>"),
        ("t\n</think>\n\nA", True, "<think>\nt\n</think>\n\nA<|im_end|>"),
    ],
)
def test_qwen3_has_every_thought_once_and_closed(answer: str, thinks: bool, expected: str) -> None:
    spec = DatasetFormat(format_type="qwen3", enable_thinking=thinks)
    assert formatter(spec, None)(Pair(TURN, assistant(answer), None)).chosen == expected


def test_an_answer_of_a_thought_alone_is_refused_without_thinking() -> None:
    spec = DatasetFormat(format_type="qwen3", enable_thinking=False)
    with pytest.raises(UnusableRowError, match="consists of its reasoning alone"):
        formatter(spec, None)(Pair(TURN, assistant("<think>t</think>"), None))


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "raw"])
@pytest.mark.parametrize("as_user", [False, True])
def test_an_answer_labeled_false_is_the_same_text_on_the_other_side(name: FormatType, as_user: bool) -> None:
    templates = CustomTemplates(assistant_suffix="<end>") if name == "custom" else None
    show = formatter(DatasetFormat(format_type=name, custom_templates=templates, system_as_user=as_user), None)
    answer = Message("assistant", "C", "thought" if name == "qwen3" else None)
    good, bad = show(Pair(WITH_SYSTEM, answer, None)), show(Pair(WITH_SYSTEM, None, answer))
    assert (bad.prompt, bad.chosen, bad.rejected) == (good.prompt, None, good.chosen)
