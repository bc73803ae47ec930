"""Thoughts of an assistant: the text between <think> and </think> that precedes its answer.

A row has a thought as `reasoning` of a message, or inline at the beginning of its content. Answers that were recorded
after a generation prompt with an opened thought lack the opening tag.
"""

from __future__ import annotations

import re
from dataclasses import replace

from merlina.data.conversation import Message

_INLINE = re.compile(r"\s*(?:<think>)?(.*?)</think>\s*(.*)", re.DOTALL)
_EMPTY = re.compile(r"<think>\s*</think>\s*\Z")
_OPENED = re.compile(r"<think>\s*\Z")


def with_separate_thought(message: Message) -> Message:
    """Return the assistant's message with an inline thought moved to `reasoning`."""
    if message.role != "assistant" or message.reasoning is not None:
        return message
    found = _INLINE.fullmatch(message.content)
    return message if found is None else replace(message, content=found[2], reasoning=found[1].strip())


def without_thought(message: Message) -> Message:
    """Return the assistant's message without its thought."""
    return replace(with_separate_thought(message), reasoning=None)


def thought_text(message: Message) -> str:
    """Return the text of the thought in front of an answer; empty without a thought."""
    return f"<think>\n{message.reasoning}\n</think>\n\n" if message.reasoning else ""


def without_empty_thought(text: str) -> str:
    """Return the text without an empty thought at its end."""
    return _EMPTY.sub("", text)


def without_opened_thought(text: str) -> str:
    """Return the text without an opening tag at its end."""
    return _OPENED.sub("", text)


def count_tags(text: str) -> tuple[int, int]:
    """Return the numbers of opening and of closing tags."""
    return text.count("<think>"), text.count("</think>")
