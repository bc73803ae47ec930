"""Answers of several turns, such as assistant, user, assistant: all text after the common prompt is the answer.

Example in ChatML, where the answer begins after the first assistant header and includes the turn of the user:

    <|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n | Hello.<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n…
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from merlina.data.conversation import Message, Pair, UnusableRowError
from merlina.data.rendering.rendered import Rendered
from merlina.schemas.datasets.config import FindingKind


def render_turns(pair: Pair, render: Callable[[Pair], Rendered]) -> Rendered:
    """Render a pair of which an answer has several turns, by a function for answers of one turn.

    Raises UnusableRowError if a conversation, as the format renders it, does not begin with the prompt.
    """
    opened = render(replace(pair, chosen=pair.answers[0].turns[0], rejected=None))
    finding_kinds: set[FindingKind] = set()

    def rendered(answer: Message) -> str:
        prompt = (*pair.prompt, *answer.earlier)
        whole = render(replace(pair, prompt=prompt, chosen=replace(answer, earlier=()), rejected=None))
        finding_kinds.update(whole.finding_kinds)
        text = f"{whole.prompt}{whole.chosen}"
        if not text.startswith(opened.prompt):
            raise UnusableRowError(
                "an answer has several turns, and the chat format renders the prompt differently once they follow; end "
                "the conversations after the first turn that differs, or choose another format"
            )
        return text[len(opened.prompt) :]

    chosen, rejected = (None if answer is None else rendered(answer) for answer in (pair.chosen, pair.rejected))
    return Rendered(opened.prompt, chosen, rejected, opened.form, frozenset(finding_kinds))
