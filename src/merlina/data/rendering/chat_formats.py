"""Chat formats: render a pair as the text that the model reads (see docs/datasets.md).

The prompt includes everything up to the first character of the answer; an answer includes its end marker. A
conversation of several turns repeats the same parts. To add a format: ARCHITECTURE.md, "Checklists".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from merlina.data.conversation import Message, Pair, UnusableRowError
from merlina.data.rendering.reasoning import reasoning_text, with_separate_reasoning, without_reasoning
from merlina.data.rendering.rendered import Rendered, render_answers
from merlina.data.rendering.system_messages import system_as_user
from merlina.data.rendering.template_arguments import ARGUMENTS_COLUMN
from merlina.data.rendering.template_format import ChatTemplate, TemplateFormat
from merlina.data.rendering.turns import render_turns
from merlina.errors import DataError
from merlina.schemas.datasets.config import CustomTemplates, DatasetFormat, FormatType

Formatter = Callable[[Pair], Rendered]
_Renderer = Callable[[Pair, DatasetFormat], Rendered]
_EMPTY_REASONING = "<think>\n\n</think>\n\n"
_FORMATS_WITH_REASONING = ("qwen3", "tokenizer")


def formatter(spec: DatasetFormat, template: ChatTemplate | None) -> Formatter:
    """Return the function that renders pairs; it raises UnusableRowError for a pair that the format cannot represent.

    Raises DataError if the format needs a template and there is none.
    """
    if spec.format_type == "tokenizer":
        if template is None:
            raise DataError(
                "model_name is required by the format 'tokenizer': it names the model with the chat template to use"
            )
        render = TemplateFormat(template, enable_thinking=spec.enable_thinking).render
    else:
        renderer = FORMATS[spec.format_type]

        def render(pair: Pair) -> Rendered:
            _refuse_tools(pair, spec)
            _refuse_template_arguments(pair, spec)
            return renderer(pair, spec)

    def render_prepared(pair: Pair) -> Rendered:
        if spec.system_as_user:
            pair = system_as_user(pair)
        without = _without_unused_reasoning(pair, spec)
        rendered = _render_turns(without, render, spec) if without.has_several_turns else render(without)
        if without is pair:
            return rendered
        return replace(rendered, finding_kinds=rendered.finding_kinds | {"reasoning_unused"})

    return render_prepared


def _render_turns(pair: Pair, render: Formatter, spec: DatasetFormat) -> Rendered:
    """Render a pair of which an answer has several turns."""
    return render_turns(_with_qwen3_turns(pair, spec) if spec.format_type == "qwen3" else pair, render)


def _refuse_tools(pair: Pair, spec: DatasetFormat) -> None:
    if pair.tools or any(turn.tool_calls or turn.role == "tool" for turn in (*pair.prompt, *pair.answers)):
        raise UnusableRowError(
            f"it has tools, which the format {spec.format_type!r} cannot represent; use the format 'tokenizer' and a "
            "model with a chat template that supports them"
        )


def _refuse_template_arguments(pair: Pair, spec: DatasetFormat) -> None:
    if pair.template_arguments:
        raise UnusableRowError(
            f"it has {ARGUMENTS_COLUMN}, which the format {spec.format_type!r} cannot pass to a chat template; use the "
            "format 'tokenizer', or remove the column"
        )


def _without_unused_reasoning(pair: Pair, spec: DatasetFormat) -> Pair:
    """Return the same pair if the format uses the reasoning of its answers or there is none."""
    turns = [turn for answer in pair.answers for turn in answer.turns]
    if spec.format_type not in _FORMATS_WITH_REASONING:
        has_reasoning = any(turn.reasoning for turn in turns)
        return _without_reasoning_of(pair, lambda turn: replace(turn, reasoning=None)) if has_reasoning else pair
    has_reasoning = any(with_separate_reasoning(turn).reasoning is not None for turn in turns)
    keeps = pair.template_arguments.get("enable_thinking", spec.enable_thinking)
    return _without_reasoning_of(pair, without_reasoning) if has_reasoning and not keeps else pair


def _without_reasoning_of(pair: Pair, remove: Callable[[Message], Message]) -> Pair:
    without = pair.with_answers(lambda answer: replace(remove(answer), earlier=tuple(map(remove, answer.earlier))))
    if not all(turn.has_content for answer in without.answers for turn in answer.turns):
        raise UnusableRowError("an answer consists of its reasoning alone, which is not trained here", "empty_side")
    return without


def _chatml(pair: Pair, _spec: DatasetFormat) -> Rendered:
    return _ended(_chatml_prompt(pair.prompt), pair, "<|im_end|>")


def _chatml_prompt(turns: Sequence[Message]) -> str:
    return "".join(f"<|im_start|>{turn.role}\n{turn.content}<|im_end|>\n" for turn in turns) + "<|im_start|>assistant\n"


def _qwen3(pair: Pair, spec: DatasetFormat) -> Rendered:
    prompt = _chatml_prompt(pair.prompt)
    if not spec.enable_thinking:
        return _ended(f"{prompt}{_EMPTY_REASONING}", pair, "<|im_end|>")
    return render_answers(prompt, pair, lambda answer: f"{_with_reasoning(answer)}<|im_end|>")


def _with_qwen3_turns(pair: Pair, spec: DatasetFormat) -> Pair:
    """Return the pair with each assistant turn of an answer as the format renders an answer.

    All turns of an answer are trained, so each assistant turn follows its own reasoning, or empty reasoning, as at
    generation. Those of the prompt have none.
    """

    def as_answer(turn: Message) -> Message:
        if turn.role != "assistant":
            return turn
        content = _with_reasoning(turn) if spec.enable_thinking else f"{_EMPTY_REASONING}{turn.content}"
        return replace(turn, content=content, reasoning=None)

    return pair.with_answers(lambda answer: replace(answer, earlier=tuple(map(as_answer, answer.earlier))))


def _with_reasoning(answer: Message) -> str:
    separate = with_separate_reasoning(answer)
    is_complete = answer.content.lstrip().startswith("<think>")
    return answer.content if is_complete and not answer.reasoning else reasoning_text(separate) + separate.content


def _llama3(pair: Pair, _spec: DatasetFormat) -> Rendered:
    turns = "".join(
        f"<|start_header_id|>{turn.role}<|end_header_id|>\n\n{turn.content}<|eot_id|>" for turn in pair.prompt
    )
    return _ended(f"<|begin_of_text|>{turns}<|start_header_id|>assistant<|end_header_id|>\n\n", pair, "<|eot_id|>")


def _mistral(pair: Pair, _spec: DatasetFormat) -> Rendered:
    text = "<s>"
    for turn in system_as_user(pair).prompt:
        text += f"[INST] {turn.content} [/INST]" if turn.role == "user" else f" {turn.content}</s>"
    return render_answers(text, pair, lambda answer: f" {answer.content}</s>")


def _custom(pair: Pair, spec: DatasetFormat) -> Rendered:
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


def _raw(pair: Pair, _spec: DatasetFormat) -> Rendered:
    if len(pair.prompt) != 1:
        raise UnusableRowError(
            f"the prompt has {len(pair.prompt)} messages, and the format 'raw' adds no markers between them; give the "
            "prompt as one text, or choose another format"
        )
    return _ended(pair.prompt[0].content, pair, "")


def _ended(prompt: str, pair: Pair, end: str) -> Rendered:
    return render_answers(prompt, pair, lambda answer: answer.content + end)


# The format `tokenizer` is rendered by the model's own template.
FORMATS: dict[FormatType, _Renderer] = {
    "chatml": _chatml,
    "llama3": _llama3,
    "mistral": _mistral,
    "qwen3": _qwen3,
    "custom": _custom,
    "raw": _raw,
}

_CHATML_MARKERS = ("<|im_start|>", "<|im_end|>")
# Markers of turns in each format. In a tokenizer made for the format, each is a single token.
MARKERS: dict[FormatType, tuple[str, ...]] = {
    "chatml": _CHATML_MARKERS,
    "qwen3": _CHATML_MARKERS,
    "llama3": ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    "mistral": ("<s>", "</s>"),
}
