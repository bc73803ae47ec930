"""The values that rows become: messages, and pairs of a prompt with its answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from merlina.errors import DataError, shorten
from merlina.schemas.datasets.config import FindingKind

_MAX_REASON_LENGTH = 300

UnusableKind = Literal[
    "unusable",
    "empty_side",
    "differing_prompts",
    "dropped_duplicates",
    "dropped_identical_answers",
    "dropped_overlong",
]


class UnusableRowError(DataError):
    """A row that cannot be converted to a pair; the message is the reason."""

    def __init__(self, message: str, kind: UnusableKind = "unusable") -> None:
        super().__init__(shorten(message, _MAX_REASON_LENGTH).encode("utf-8", "replace").decode(), kind)

    @property
    def kind(self) -> UnusableKind:
        return self.args[1]  # type: ignore[no-any-return]


@dataclass(frozen=True)
class SkippedRow:
    """A row that cannot be converted to a pair; rows are numbered from 1.

    `rows` is 0 if another pair or reason of the same row precedes it, above 1 for merged rows.
    """

    number: int
    reason: str
    kind: UnusableKind = "unusable"
    rows: int = 1


@dataclass(frozen=True)
class Message:
    """One message of a conversation; `role` is system, user, assistant or tool.

    `reasoning` is what an assistant writes before its `content`, between `<think>` and `</think>`. `tool_calls` are
    objects with a `function` that has a `name` and `arguments`, and `tool_fields` those of a tool's message, both as
    chat templates receive them.

    An answer may have several turns, such as assistant, user, assistant: it is the last of them, and the others are
    `earlier`.
    """

    role: str
    content: str
    reasoning: str | None = None
    tool_calls: tuple[Mapping[str, Any], ...] = ()
    tool_fields: Mapping[str, str] = field(default_factory=dict)
    earlier: tuple[Message, ...] = ()

    @property
    def turns(self) -> tuple[Message, ...]:
        """All turns of an answer."""
        return (*self.earlier, replace(self, earlier=())) if self.earlier else (self,)

    @property
    def num_characters(self) -> int:
        """The number of characters in the contents of all turns."""
        return sum((len(turn.content) for turn in self.earlier), len(self.content))

    @property
    def stripped(self) -> Message:
        """The same message without whitespace around the contents of its turns."""
        return replace(self, content=self.content.strip(), earlier=tuple(turn.stripped for turn in self.earlier))

    @property
    def has_content(self) -> bool:
        """Whether the message has text or calls of tools."""
        return bool(self.content.strip() or self.tool_calls)


def assistant(content: str) -> Message:
    """Return a message of the assistant."""
    return Message("assistant", content)


@dataclass(frozen=True)
class Pair:
    """A prompt with its chosen and rejected answer, as messages.

    `prompt` ends with the turn to answer; a system message, if any, comes first.

    `rejected` is None for sft. An unpaired answer is `chosen` if its label is true, otherwise `rejected`, and the other
    one is None.

    `template_arguments` are the arguments that the row itself has for the chat template of the format `tokenizer`.

    `finding_kinds` are those of the findings that the conversion of its row gave rise to. `rows` is the number of rows
    that it was made from, 0 for all pairs of a row but the first.
    """

    prompt: tuple[Message, ...]
    chosen: Message | None
    rejected: Message | None
    tools: tuple[Mapping[str, Any], ...] = ()
    template_arguments: Mapping[str, Any] = field(default_factory=dict)
    number: int = field(default=0, compare=False)  # number of its row, from 1
    finding_kinds: frozenset[FindingKind] = field(default=frozenset(), compare=False)
    rows: int = field(default=1, compare=False)

    @property
    def answers(self) -> tuple[Message, ...]:
        """The answers that the pair has, the chosen one first."""
        if self.chosen is None:
            return () if self.rejected is None else (self.rejected,)
        return (self.chosen,) if self.rejected is None else (self.chosen, self.rejected)

    @property
    def has_several_turns(self) -> bool:
        """Whether an answer has several turns."""
        return any(answer.earlier for answer in self.answers)

    @property
    def turns(self) -> tuple[Message, ...]:
        """The turns of the prompt, followed by those of each answer."""
        turns = (*self.prompt, *self.answers)
        return tuple(each for turn in turns for each in turn.turns) if self.has_several_turns else turns

    def with_answers(self, change: Callable[[Message], Message]) -> Pair:
        """Return the pair with each answer changed."""
        chosen, rejected = (None if answer is None else change(answer) for answer in (self.chosen, self.rejected))
        return replace(self, chosen=chosen, rejected=rejected)

    @property
    def has_identical_answers(self) -> bool:
        """Whether both answers are the same, apart from whitespace around their texts."""
        if self.chosen is None or self.rejected is None or self.chosen.content.strip() != self.rejected.content.strip():
            return False
        return self.chosen.stripped == self.rejected.stripped
