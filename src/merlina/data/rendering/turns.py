"""Answers of several turns, such as assistant, user, assistant: all text after the common prompt is the answer.

Example in ChatML, where the answer begins after the first assistant header and includes the turn of the user:

    <|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n | Hello.<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n…
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

from merlina.data.conversation import Message, Pair, UnusableRowError
from merlina.data.rendering.reasoning import with_separate_reasoning, without_reasoning
from merlina.data.rendering.rendered import Rendered, render_answers
from merlina.schemas.datasets.config import FindingKind


def render_turns(pair: Pair, render: Callable[[Pair], Rendered]) -> Rendered:
    """Render a pair of which an answer has several turns, by a function for answers of one turn.

    Reasoning that the format omits from earlier turns is reported as unused. Raises UnusableRowError if a conversation,
    as the format renders it, does not begin with the prompt, or if both answers become the same text.
    """
    render_whole = partial(_whole, pair, render)
    wholes = [render_whole(answer) for answer in pair.answers]
    finding_kinds: set[FindingKind] = set().union(*(whole.finding_kinds for whole in wholes))
    if any(
        _is_rendered_as(whole, without, render_whole)
        for answer, whole in zip(pair.answers, wholes, strict=True)
        for without in _each_without_reasoning(answer)
    ):
        finding_kinds.add("reasoning_unused")
    texts = [f"{whole.prompt}{whole.chosen}" for whole in wholes]
    begun = (each for each in _begun(pair, render) if all(text.startswith(each.prompt) for text in texts))
    if (opened := next(begun, None)) is None:
        raise UnusableRowError(
            "an answer has several turns, and the chat format renders the prompt differently once they follow; end "
            "the conversations after the first turn that differs, or choose another format"
        )
    if len(set(texts)) < len(texts) and not pair.has_identical_answers:
        raise UnusableRowError(
            "the chat format renders both answers as the same text, for instance a tool call without the text beside it"
        )
    answers = (text[len(opened.prompt) :] for text in texts)
    return render_answers(opened.prompt, pair, lambda _: next(answers), opened.form, tuple(finding_kinds))


def _whole(pair: Pair, render: Callable[[Pair], Rendered], answer: Message) -> Rendered:
    """Render an answer of the pair with its earlier turns as a part of the prompt."""
    prompt = (*pair.prompt, *answer.earlier)
    return render(replace(pair, prompt=prompt, chosen=replace(answer, earlier=()), rejected=None))


def _begun(pair: Pair, render: Callable[[Pair], Rendered]) -> Iterator[Rendered]:
    """Yield renderings of the prompt with a first turn of an answer.

    The prompt may end with opened reasoning if the turn has some, which the template omits once other turns follow.
    """
    for answer in pair.answers:
        first = answer.turns[0]
        for turn in (first, without_reasoning(first)):
            if turn.has_content:
                yield render(replace(pair, chosen=turn, rejected=None))


def _is_rendered_as(expected: Rendered, answer: Message, render: Callable[[Message], Rendered]) -> bool:
    try:
        found = render(answer)
    except UnusableRowError:
        return False
    return (found.prompt, found.chosen) == (expected.prompt, expected.chosen)


def _each_without_reasoning(answer: Message) -> Iterator[Message]:
    """Yield the answer without the reasoning of each earlier turn that has some."""
    for index, turn in enumerate(answer.earlier):
        if with_separate_reasoning(turn).reasoning:
            earlier = (*answer.earlier[:index], without_reasoning(turn), *answer.earlier[index + 1 :])
            yield replace(answer, earlier=earlier)
