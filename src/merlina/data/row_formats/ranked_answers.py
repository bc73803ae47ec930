"""Several answers to one prompt with ranks or scores, and the pairs that they give."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from merlina.data.conversation import UnusableRowError
from merlina.data.readers.files import Row
from merlina.schemas.datasets.config import PairsPerRow

_MAX_ANSWERS_FOR_ALL = 64


@dataclass(frozen=True)
class RankedAnswers:
    """The answers to a prompt, each with a score; a higher score is better. `question` is a row without answers."""

    question: Row
    answers: tuple[tuple[float, Any], ...]

    def best(self) -> Row:
        """Return the row of a demonstration: the question with its best answer, the first of several."""
        return {**self.question, "chosen": max(self._given(), key=_score)[1]}

    def pairs(self, pairs_per_row: PairsPerRow) -> list[Row]:
        """Return the rows of pairs, the best answer first. Raises UnusableRowError if no answer is better than another.

        Example: scores 3, 2, 2 give (3, 2) with best_worst, and (3, 2), (3, 2) with all.
        """
        ranked = sorted(self._given(), key=_score, reverse=True)
        if len(ranked) == 1:
            raise UnusableRowError("there is one answer to this prompt; a pair needs two with different scores")
        if ranked[0][0] == ranked[-1][0]:
            raise UnusableRowError(f"the {len(ranked)} answers are tied, so that none of them is preferred")
        if pairs_per_row == "best_worst":
            return [self._pair(ranked[0][1], ranked[-1][1])]
        if len(ranked) > _MAX_ANSWERS_FOR_ALL:
            raise UnusableRowError(
                f"there are {len(ranked)} answers, and pairs_per_row all takes at most {_MAX_ANSWERS_FOR_ALL}; "
                "use best_worst"
            )
        return list(self._all_pairs(ranked))

    def _all_pairs(self, ranked: list[tuple[float, Any]]) -> Iterator[Row]:
        for (better, chosen), (worse, rejected) in combinations(ranked, 2):
            if better > worse:
                yield self._pair(chosen, rejected)

    def _pair(self, chosen: Any, rejected: Any) -> Row:
        return {**self.question, "chosen": chosen, "rejected": rejected}

    def _given(self) -> tuple[tuple[float, Any], ...]:
        if not self.answers:
            raise UnusableRowError("there is no answer to this prompt", "empty_side")
        return self.answers


def _score(answer: tuple[float, Any]) -> float:
    return answer[0]
