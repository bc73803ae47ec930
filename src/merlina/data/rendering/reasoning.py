"""The reasoning of an assistant: the text between <think> and </think> that precedes its answer.

A row has reasoning as `reasoning` of a message, or inline at the beginning of its content. Answers that were recorded
after a generation prompt with an opened reasoning block lack the opening tag; then the closing tag begins or ends a
line, since a text may also mention it.
"""

from __future__ import annotations

import re
from dataclasses import replace

from merlina.data.conversation import Message

_OPENING, _CLOSING = "<think>", "</think>"
# Empty reasoning, or its closing tag alone: some generation prompts state so that the answer has none.
_EMPTY = re.compile(r"(?:<think>\s*)?</think>\s*\Z")
_OPENED = re.compile(r"<think>\s*\Z")


def with_separate_reasoning(message: Message) -> Message:
    """Return the assistant's message with inline reasoning moved to `reasoning`."""
    if message.role != "assistant" or message.reasoning is not None:
        return message
    reasoning, closing, content = message.content.partition(_CLOSING)
    if not closing or not _is_reasoning(reasoning, content):
        return message
    return replace(message, content=content.lstrip(), reasoning=reasoning.lstrip().removeprefix(_OPENING).strip())


def _is_reasoning(before: str, after: str) -> bool:
    """Return whether a closing tag between these texts ends reasoning at the beginning of an answer."""
    if before.lstrip().startswith(_OPENING):
        return True
    return _OPENING not in before and (before.endswith("\n") or after.startswith("\n") or not after)


def without_reasoning(message: Message) -> Message:
    """Return the assistant's message without its reasoning."""
    return replace(with_separate_reasoning(message), reasoning=None)


def reasoning_text(message: Message) -> str:
    """Return the text of the reasoning in front of an answer; empty without reasoning."""
    return f"<think>\n{message.reasoning}\n</think>\n\n" if message.reasoning else ""


def without_empty_reasoning(text: str) -> str:
    """Return the text without empty reasoning at its end."""
    return _EMPTY.sub("", text)


def without_opened_reasoning(text: str) -> str:
    """Return the text without an opening tag at its end."""
    return _OPENED.sub("", text)


def count_tags(text: str) -> tuple[int, int]:
    """Return the numbers of opening and of closing tags."""
    return text.count(_OPENING), text.count(_CLOSING)
