"""System messages as a part of the user's message, for models without a system role."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from merlina.data.conversation import Message, Pair


def has_system_message(pair: Pair) -> bool:
    """Return whether the prompt has a system message."""
    return any(turn.role == "system" for turn in pair.prompt)


def system_as_user(pair: Pair) -> Pair:
    """Return the pair with each system message at the start of the next user message, followed by an empty line.

    This applies to the prompt and to the earlier turns of each answer. If no user message follows, it becomes one.
    """

    def prepended(answer: Message) -> Message:
        return replace(answer, earlier=_prepended(answer.earlier)) if answer.earlier else answer

    return replace(pair.with_answers(prepended), prompt=_prepended(pair.prompt))


def _prepended(conversation: Sequence[Message]) -> tuple[Message, ...]:
    turns: list[Message] = []
    texts: list[str] = []
    for turn in conversation:
        if turn.role == "system":
            texts.append(turn.content)
        elif turn.role == "user":
            turns.append(replace(turn, content="\n\n".join([*texts, turn.content])))
            texts = []
        else:
            turns.append(turn)
    if texts:  # no user message follows
        turns.append(Message("user", "\n\n".join(texts)))
    return tuple(turns)
