"""Chat formats: render a pair as the text that the model reads (see docs/datasets.md).

The prompt includes everything up to the first character of the answer; an answer includes its end marker. A
conversation of several turns repeats the same parts. To add a format: ARCHITECTURE.md, "Checklists".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from merlina.data.pairs import Message, Pair, UnusableRowError
from merlina.errors import DataError
from merlina.schemas.datasets import CustomTemplates, DatasetFormat, FormatType


@dataclass(frozen=True)
class Rendered:
    """The prompt and the answers of a pair as strings; the model reads prompt + answer."""

    prompt: str
    chosen: str
    rejected: str | None


class ChatTemplate(Protocol):
    """The chat template of a tokenizer."""

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool, enable_thinking: bool) -> str:
        """Return the messages as text, with the beginning of an answer if `add_generation_prompt`."""


Formatter = Callable[[Pair], Rendered]
_Renderer = Callable[[Pair, DatasetFormat, ChatTemplate | None], Rendered]


def formatter(spec: DatasetFormat, template: ChatTemplate | None) -> Formatter:
    """Return the function that renders pairs. Raises DataError if the format needs a template and there is none."""
    if spec.format_type == "tokenizer" and template is None:
        raise DataError(
            "model_name is required by the format 'tokenizer': it names the model with the chat template to use"
        )
    render = FORMATS[spec.format_type]
    return lambda pair: render(pair, spec, template)


def _chatml(pair: Pair, _spec: DatasetFormat, _template: ChatTemplate | None) -> Rendered:
    return _ended(_chatml_prompt(pair.prompt), pair, "<|im_end|>")


def _chatml_prompt(turns: Sequence[Message]) -> str:
    return "".join(f"<|im_start|>{turn.role}\n{turn.content}<|im_end|>\n" for turn in turns) + "<|im_start|>assistant\n"


def _qwen3(pair: Pair, spec: DatasetFormat, _template: ChatTemplate | None) -> Rendered:
    prompt = _chatml_prompt(pair.prompt)
    if not spec.enable_thinking:
        return _ended(f"{prompt}<think>\n\n</think>\n\n", pair, "<|im_end|>")
    return _rendered(prompt, pair, lambda answer: f"{_thought(answer)}{answer.content}<|im_end|>")


def _thought(answer: Message) -> str:
    return f"<think>\n{answer.reasoning}\n</think>\n\n" if answer.reasoning else ""


def _llama3(pair: Pair, _spec: DatasetFormat, _template: ChatTemplate | None) -> Rendered:
    turns = "".join(
        f"<|start_header_id|>{turn.role}<|end_header_id|>\n\n{turn.content}<|eot_id|>" for turn in pair.prompt
    )
    return _ended(f"<|begin_of_text|>{turns}<|start_header_id|>assistant<|end_header_id|>\n\n", pair, "<|eot_id|>")


def _mistral(pair: Pair, _spec: DatasetFormat, _template: ChatTemplate | None) -> Rendered:
    text, system = "<s>", ""
    for turn in pair.prompt:
        if turn.role == "system":
            system += f"{turn.content}\n\n"
        elif turn.role == "user":
            text += f"[INST] {system}{turn.content} [/INST]"
            system = ""
        else:
            text += f" {turn.content}</s>"
    return _rendered(text, pair, lambda answer: f" {answer.content}</s>")


def _tokenizer(pair: Pair, spec: DatasetFormat, template: ChatTemplate | None) -> Rendered:
    assert template is not None
    prompt = template.render(pair.prompt, add_generation_prompt=True, enable_thinking=spec.enable_thinking)
    return _rendered(prompt, pair, lambda answer: _template_answer(pair, answer.content, prompt, spec, template))


def _template_answer(pair: Pair, text: str, prompt: str, spec: DatasetFormat, template: ChatTemplate) -> str:
    """Return what the template adds to the prompt for this answer, up to and including the end marker.

    Raises UnusableRowError if the template renders the prompt differently once an answer follows.
    """
    turns = (*pair.prompt, Message("assistant", text))
    whole = template.render(turns, add_generation_prompt=False, enable_thinking=spec.enable_thinking)
    # Newlines after the end marker belong to the next turn; newlines inside the answer are part of it.
    answer_ends = whole.rfind(text) + len(text) if text in whole else 0
    whole = whole[:answer_ends] + whole[answer_ends:].rstrip("\n")
    if whole.startswith(prompt):
        return whole[len(prompt) :]
    # Some templates open a thought in the generation prompt but omit it from a finished turn.
    bare = template.render(pair.prompt, add_generation_prompt=False, enable_thinking=spec.enable_thinking)
    begins = whole.find(text, len(bare)) if whole.startswith(bare) else -1
    if begins < 0:
        raise UnusableRowError("the model's chat template renders the prompt differently once an answer follows")
    return whole[begins:]


def _custom(pair: Pair, spec: DatasetFormat, _template: ChatTemplate | None) -> Rendered:
    parts = spec.custom_templates
    assert parts is not None
    prompt = "".join(_custom_turn(turn, parts) for turn in pair.prompt) + parts.assistant_prefix
    return _ended(prompt, pair, parts.assistant_suffix)


def _custom_turn(turn: Message, parts: CustomTemplates) -> str:
    around = {
        "system": (parts.system_prefix, parts.system_suffix),
        "user": (parts.user_prefix, parts.user_suffix),
        "assistant": (parts.assistant_prefix, parts.assistant_suffix),
    }
    prefix, suffix = around[turn.role]
    return f"{prefix}{turn.content}{suffix}"


def _ended(prompt: str, pair: Pair, end: str) -> Rendered:
    return _rendered(prompt, pair, lambda answer: answer.content + end)


def _rendered(prompt: str, pair: Pair, render: Callable[[Message], str]) -> Rendered:
    return Rendered(prompt, render(pair.chosen), None if pair.rejected is None else render(pair.rejected))


FORMATS: dict[FormatType, _Renderer] = {
    "chatml": _chatml,
    "llama3": _llama3,
    "mistral": _mistral,
    "qwen3": _qwen3,
    "tokenizer": _tokenizer,
    "custom": _custom,
}

_CHATML_MARKERS = ("<|im_start|>", "<|im_end|>")
# Markers of turns in each format. In a tokenizer made for the format, each is a single token.
MARKERS: dict[FormatType, tuple[str, ...]] = {
    "chatml": _CHATML_MARKERS,
    "qwen3": _CHATML_MARKERS,
    "llama3": ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    "mistral": ("<s>", "</s>"),
    "tokenizer": (),
    "custom": (),
}
