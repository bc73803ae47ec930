"""The format `tokenizer`: a pair as the model's own chat template renders it.

The prompt is what the template renders at generation time, and an answer is what it adds for a finished turn. The
boundary between them follows from renderings, never from a search for the answer's text:

    opened    the prompt with the generation prompt          <user>Hi</user><bot>
    finished  the prompt followed by the answer as a turn    <user>Hi</user><bot>Hello.</bot>
    head      what `finished` has in front of any answer     <user>Hi</user><bot>

1. If `finished` begins with `opened`, the prompt is `opened` and the answer is the rest of `finished`. Empty reasoning
   that the template puts in front of an answer is part of this rest.
2. Otherwise, if `opened` begins with `head`, the generation prompt ends with something that a finished turn does not
   have, such as an opened reasoning block: the prompt is `head`.
3. Otherwise, the template moves or drops a part of the prompt once an answer follows: the prompt is `opened`, as at
   generation time, and the answer is what follows `head`.

An answer's reasoning is passed to the template. If the template drops or repeats it, it is put between head and answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from merlina.data.conversation import Message, Pair, UnusableRowError
from merlina.data.rendering.reasoning import (
    count_tags,
    reasoning_text,
    with_separate_reasoning,
    without_empty_reasoning,
    without_opened_reasoning,
)
from merlina.data.rendering.rendered import Rendered, render_answers
from merlina.data.rendering.system_messages import has_system_message, system_as_user
from merlina.schemas.datasets.config import FindingKind

# The first and last characters of these probes differ, so what their renderings have in common belongs to the template.
_OTHER_ANSWERS = (Message("assistant", "Yes"), Message("assistant", "No"))
_NEXT_TURNS_KEPT = 64
_CONTINUES = "the prompt as at generation, followed by what the chat template adds for a finished turn"
_FINISHED_TURN = (
    "finished turn: the generation prompt ends with {tail!r}, which the chat template omits once an answer follows, so "
    "the prompt ends before it"
)
_REARRANGED = (
    "the prompt as at generation: the chat template renders it differently once an answer follows, so the answer is "
    "taken from the finished turn"
)
_RESTORED = "; the answer's reasoning, which the chat template does not render once and closed, is put in front of it"


class ChatTemplate(Protocol):
    """The chat template of a tokenizer, which has the `special_tokens`."""

    @property
    def special_tokens(self) -> tuple[str, ...]: ...

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool,
        arguments: Mapping[str, Any],
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> str:
        """Return the messages as text, with the beginning of an answer if `add_generation_prompt`.

        `arguments` are passed to the template.

        Raises UnusableRowError if the template refuses the messages.
        """


class TemplateFormat:
    """Renders pairs by one chat template."""

    def __init__(self, template: ChatTemplate, *, enable_thinking: bool) -> None:
        self._template = template
        self._enable_thinking = enable_thinking
        self._next_turns: dict[str, str] = {}

    def render(self, pair: Pair) -> Rendered:
        """Return the pair as text. Raises UnusableRowError if the template refuses it."""
        try:
            self._refuse_ignored_tools(pair)
            return _PairRendering(pair, self).rendered()
        except UnusableRowError as error:
            if has_system_message(pair) and self._accepts(system_as_user(pair)):
                raise UnusableRowError(
                    f"{error.message}. format.system_as_user: true puts the system message into the user's message"
                ) from error
            raise

    def _refuse_ignored_tools(self, pair: Pair) -> None:
        """Raise UnusableRowError if the pair has tools or calls that the template does not render."""
        if not (pair.tools or any(turn.tool_calls or turn.role == "tool" for turn in (*pair.prompt, *pair.answers))):
            return
        variants = {
            "tools": replace(pair, tools=()),
            "tool_calls": _without_calls(pair),
            "messages with the role tool": _with_other_results(pair),
        }
        for name, without in variants.items():
            if without != pair and self._renders_the_same(pair, without):
                raise UnusableRowError(
                    f"the model's chat template ignores {name}; use a model with a chat template that renders them, or "
                    "remove them from the rows"
                )

    def _renders_the_same(self, pair: Pair, other: Pair) -> bool:
        """Return whether an answer is rendered as the same text although it, its prompt or the tools differ."""
        differing = [
            (answer, changed)
            for answer, changed in zip(pair.answers, other.answers, strict=True)
            if (pair.tools, pair.prompt, answer) != (other.tools, other.prompt, changed)
        ]
        try:
            return any(self.finished(pair, answer) == self.finished(other, changed) for answer, changed in differing)
        except UnusableRowError:
            return False  # a template that refuses one of the two does not ignore what differs

    def _accepts(self, pair: Pair) -> bool:
        try:
            self.opened(pair)
        except UnusableRowError:
            return False
        return True

    def opened(self, pair: Pair) -> str:
        """Return the prompt with the generation prompt."""
        return self._render(pair, pair.prompt, add_generation_prompt=True)

    def finished(self, pair: Pair, answer: Message) -> str:
        """Return the prompt followed by the answer as a turn, up to the end of the answer."""
        # A template may add another generation prompt with other arguments.
        arguments = repr(pair.template_arguments)
        if arguments not in self._next_turns:
            if len(self._next_turns) >= _NEXT_TURNS_KEPT:
                self._next_turns.clear()
            self._next_turns[arguments] = self._find_next_turn(pair)
        return self._whole_turn(pair, answer).removesuffix(self._next_turns[arguments])

    def head(self, pair: Pair) -> str:
        """Return what a finished turn has in front of any answer without reasoning."""
        return _common_prefix([self.finished(pair, answer) for answer in _OTHER_ANSWERS])

    def _find_next_turn(self, pair: Pair) -> str:
        """Return what the template puts after the end of every answer: whitespace, or a generation prompt."""
        after = _common_ending([self._whole_turn(pair, answer) for answer in _OTHER_ANSWERS])
        end, special = after.rstrip(), self._template.special_tokens
        if not end.endswith(special):
            # Some templates add a generation prompt after every message.
            end = end[: min((end.find(token) + len(token) for token in special if token in end), default=len(end))]
        return after[len(end) :]

    def _whole_turn(self, pair: Pair, answer: Message) -> str:
        return self._render(pair, (*pair.prompt, answer), add_generation_prompt=False)

    def _render(self, pair: Pair, turns: Sequence[Message], *, add_generation_prompt: bool) -> str:
        return self._template.render(
            turns,
            add_generation_prompt=add_generation_prompt,
            arguments={"enable_thinking": self._enable_thinking, **pair.template_arguments},
            tools=pair.tools,
        )


class _PairRendering:
    """The renderings of one pair."""

    def __init__(self, pair: Pair, how: TemplateFormat) -> None:
        self._pair = pair
        self._how = how
        self._opened = how.opened(pair)
        self._finding_kinds: set[FindingKind] = set()

    def rendered(self) -> Rendered:
        finished = [self._finished(answer) for answer in self._pair.answers]
        prompt, begins, form = self._divide(finished)
        if "thought_restored" in self._finding_kinds:
            form += _RESTORED
        if any(turn.role == "system" and turn.content.strip() not in self._opened for turn in self._pair.prompt):
            self._finding_kinds.add("system_dropped")
        answers = [text[begins:] for text in finished]
        if len(set(answers)) < len(answers) and not self._pair.has_identical_answers:
            raise UnusableRowError(
                "the model's chat template renders both answers as the same text, for instance a tool call without the "
                "text beside it"
            )
        texts = iter(answers)
        return render_answers(prompt, self._pair, lambda _: next(texts), form, tuple(self._finding_kinds))

    def _divide(self, finished: Sequence[str]) -> tuple[str, int, str]:
        """Return the prompt, the position in `finished` at which the answers begin, and the form that was chosen."""
        opened = self._opened
        if all(text.startswith(opened) for text in finished):
            return opened, len(opened), _CONTINUES
        head = self._head(finished)
        if opened.startswith(head):
            return head, len(head), _FINISHED_TURN.format(tail=opened[len(head) :])
        self._finding_kinds.add("prompt_rearranged")
        # What the template puts in front of every answer belongs to the answer.
        begins = len(without_opened_reasoning(without_empty_reasoning(head)))
        return without_opened_reasoning(without_empty_reasoning(opened)), begins, _REARRANGED

    def _head(self, finished: Sequence[str]) -> str:
        """Return what these finished turns have in front of their answers and reasoning."""
        head = self._how.head(self._pair)
        if all(text.startswith(head) for text in finished):
            return head
        return _common_prefix([without_empty_reasoning(head), *finished])

    def _finished(self, answer: Message) -> str:
        """Return the finished turn with the answer's reasoning once and closed."""
        separate = with_separate_reasoning(answer)
        if not separate.reasoning:
            return self._how.finished(self._pair, answer)
        reasoning = reasoning_text(separate)
        inline = replace(separate, content=reasoning + separate.content, reasoning=None)
        plain = self._how.finished(self._pair, replace(separate, reasoning=None))
        as_given = answer if answer.reasoning else replace(answer, content=answer.content.lstrip())
        for written in (as_given, separate, inline):
            text = self._how.finished(self._pair, written)
            if text != plain and self._has_reasoning_once(text, separate, is_inline=written.reasoning is None):
                return text
        self._finding_kinds.add("thought_restored")
        head = self._how.head(self._pair)
        return without_empty_reasoning(head) + reasoning + plain[len(head) :]

    def _has_reasoning_once(self, finished: str, answer: Message, *, is_inline: bool) -> bool:
        """Return whether the answer has its reasoning once and closed; a template may write `reasoning` in other tags.

        The reasoning and the content of `answer` may mention tags, which do not count.
        """
        before = without_opened_reasoning(without_empty_reasoning(self._opened))
        mentioned = count_tags(f"{before} {answer.reasoning} {answer.content}")
        added = tuple(count - others for count, others in zip(count_tags(finished), mentioned, strict=True))
        return added == (1, 1) or (added == (0, 0) and not is_inline)


def _without_calls(pair: Pair) -> Pair:
    def without(turn: Message) -> Message:
        return replace(turn, tool_calls=())

    return replace(pair.with_answers(without), prompt=tuple(map(without, pair.prompt)))


def _with_other_results(pair: Pair) -> Pair:
    prompt = (replace(turn, content=f"{turn.content} 0") if turn.role == "tool" else turn for turn in pair.prompt)
    return replace(pair, prompt=tuple(prompt))


def _common_prefix(texts: Sequence[str]) -> str:
    """Return the longest text with which all `texts` begin."""
    # All others lie between these two in the order of strings.
    first, last = min(texts), max(texts)
    differs = (index for index, (a, b) in enumerate(zip(first, last, strict=False)) if a != b)
    return first[: next(differs, len(first))]


def _common_ending(texts: Sequence[str]) -> str:
    """Return the longest text with which all `texts` end."""
    return _common_prefix([text[::-1] for text in texts])[::-1]
