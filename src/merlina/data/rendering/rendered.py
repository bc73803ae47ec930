"""The result of a chat format: a pair as strings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from merlina.data.conversation import Message, Pair
from merlina.schemas.datasets.config import FindingKind


@dataclass(frozen=True)
class Rendered:
    """The prompt and the answers of a pair as strings; the model reads prompt + answer. An answer may be missing.

    `form` states for users which of several forms the format chose, and why; None if there is only one.
    `finding_kinds` are those of the findings that it gave rise to.
    """

    prompt: str
    chosen: str | None
    rejected: str | None
    form: str | None = None
    finding_kinds: frozenset[FindingKind] = frozenset()

    @property
    def sample(self) -> dict[str, str | None]:
        """The fields of a preview: the three texts by the names of their columns, and `form` if there is one."""
        texts = {"prompt": self.prompt, "chosen": self.chosen, "rejected": self.rejected}
        return texts if self.form is None else {**texts, "form": self.form}


def render_answers(
    prompt: str,
    pair: Pair,
    render: Callable[[Message], str],
    form: str | None = None,
    finding_kinds: Sequence[FindingKind] = (),
) -> Rendered:
    """Return the prompt with each answer as `render` gives it."""
    chosen = None if pair.chosen is None else render(pair.chosen)
    rejected = None if pair.rejected is None else render(pair.rejected)
    return Rendered(prompt, chosen, rejected, form, frozenset(finding_kinds))
