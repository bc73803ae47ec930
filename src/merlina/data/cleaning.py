"""The cleaning options of a data set: they change pairs or drop them, and every dropped pair is reported."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from merlina.data.conversation import Message, Pair, SkippedRow
from merlina.data.digests import pair_digest, prompt_digest
from merlina.schemas.datasets.config import DatasetConfig


class Cleaning:
    """Applies the options of a configuration that concern texts; `drop_overlong` concerns tokens."""

    def __init__(self, config: DatasetConfig) -> None:
        self._config = config
        self._seen: set[int] = set()

    def outcomes(self, rows: Iterable[Pair | SkippedRow]) -> Iterator[Pair | SkippedRow]:
        """Yield the rows, with pairs cleaned or skipped."""
        for row in rows:
            yield self._cleaned(row) if isinstance(row, Pair) else row

    def _cleaned(self, pair: Pair) -> Pair | SkippedRow:
        config = self._config
        if config.strip:
            pair = _stripped(pair)
        if config.default_system and pair.prompt[0].role != "system":
            pair = replace(pair, prompt=(Message("system", config.default_system), *pair.prompt))
        if config.drop_identical_answers and pair.has_identical_answers:
            return SkippedRow(pair.number, "both answers are the same", "dropped_identical_answers", pair.rows)
        if config.drop_duplicates and self._is_known(pair):
            return SkippedRow(pair.number, "it repeats an earlier row", "dropped_duplicates", pair.rows)
        return pair

    def _is_known(self, pair: Pair) -> bool:
        digest = pair_digest(pair, prompt_digest(pair))
        if digest in self._seen:
            return True
        self._seen.add(digest)
        return False


def _stripped(pair: Pair) -> Pair:
    return replace(
        pair.with_answers(lambda answer: answer.stripped), prompt=tuple(turn.stripped for turn in pair.prompt)
    )
