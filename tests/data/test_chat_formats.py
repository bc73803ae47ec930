from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

import pytest

from merlina.data.chat_formats import FORMATS, MARKERS, formatter
from merlina.data.pairs import Message, Pair, assistant
from merlina.errors import DataError
from merlina.schemas.datasets import CustomTemplates, DatasetFormat, FormatType

TURN = (Message("user", "P"),)
WITH_SYSTEM = (Message("system", "S"), *TURN)
SEVERAL = (Message("system", "S"), Message("user", "P"), Message("assistant", "A"), Message("user", "Q"))


def render(spec: DatasetFormat, prompt: tuple[Message, ...], reasoning: str | None = None) -> tuple[str, str, str]:
    rendered = formatter(spec, None)(Pair(prompt, assistant("C", reasoning), assistant("R", reasoning)))
    return rendered.prompt, rendered.chosen, rendered.rejected


def test_every_format_in_the_schema_is_implemented() -> None:
    assert set(FORMATS) == set(MARKERS) == set(get_args(FormatType))


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


class ThinkingTemplate:
    """Opens a thought in the generation prompt and drops it from finished turns, as some models' templates do."""

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool, enable_thinking: bool) -> str:
        text = "".join(f"<{message.role}>{message.content}</>\n" for message in messages)
        return text + ("<assistant><think>" if add_generation_prompt else "")


def test_a_chat_template_renders_prompt_and_answer_up_to_the_end_marker() -> None:
    spec = DatasetFormat(format_type="tokenizer")
    rendered = formatter(spec, ThinkingTemplate())(Pair(TURN, assistant("C"), assistant("R")))
    assert (rendered.prompt, rendered.chosen, rendered.rejected) == ("<user>P</>\n<assistant><think>", "C</>", "R</>")


def test_the_format_tokenizer_needs_a_template() -> None:
    with pytest.raises(DataError, match="chat template"):
        formatter(DatasetFormat(format_type="tokenizer"), None)


@pytest.mark.parametrize("text", ["Blue.", "Blue.\n", "Blue.\n\n", "a\nb"])
def test_newlines_of_an_answer_are_kept_and_the_templates_last_one_removed(text: str) -> None:
    rendered = formatter(DatasetFormat(format_type="tokenizer"), ChatMl())(Pair(TURN, assistant(text), assistant("R")))
    assert rendered.chosen == f"{text}<|im_end|>"
    assert rendered.rejected == "R<|im_end|>"


class ChatMl:
    """ChatML as models' templates have it: a newline after every turn."""

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool, enable_thinking: bool) -> str:
        turns = "".join(f"<|im_start|>{turn.role}\n{turn.content}<|im_end|>\n" for turn in messages)
        return turns + ("<|im_start|>assistant\n" if add_generation_prompt else "")
