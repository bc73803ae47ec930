"""The sets of pairs that a run evaluates on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from merlina.training.models.tokens import TokenPair

HELD_OUT = "held_out"


@dataclass(frozen=True)
class EvaluationSet:
    """Pairs to evaluate on: those that are held out of the training data, HELD_OUT, or a data set of its own."""

    name: str
    pairs: Sequence[TokenPair]

    @property
    def reference_name(self) -> str:
        """File-name stem of this set's stored reference log-probabilities (see `reference_logprobs`)."""
        return "held-out" if self.name == HELD_OUT else f"evaluation-{self.name}"

    @property
    def unrelated_name(self) -> str:
        """File-name stem of the reference's log-probabilities of the unrelated answers.

        It never equals the `reference_name` of another set.
        """
        return "held-out-unrelated" if self.name == HELD_OUT else f"unrelated-{self.name}"
