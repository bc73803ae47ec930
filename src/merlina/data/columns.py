"""Rename columns as `column_mapping` requires, and suggest a mapping from usual column names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import get_args

from merlina.data.readers.files import Row
from merlina.errors import DataError
from merlina.schemas.datasets.config import PairColumn


def check_mapping(rows: Sequence[Row], mapping: Mapping[str, PairColumn] | None) -> None:
    """Raise DataError if the mapping names a column that none of the rows has."""
    columns = dict.fromkeys(name for row in rows for name in row)
    missing = [name for name in mapping or () if name not in columns]
    if rows and missing:
        raise DataError(f"column_mapping names {', '.join(map(repr, missing))}; the columns are {', '.join(columns)}")


def map_columns(row: Row, mapping: Mapping[str, PairColumn] | None) -> Row:
    """Return the row with its mapped columns renamed."""
    if not mapping:
        return row
    targets = set(mapping.values())
    kept = {name: value for name, value in row.items() if name not in mapping and name not in targets}
    return {**kept, **{target: row[name] for name, target in mapping.items() if name in row}}


# Column names in published data sets, the most likely first.
_USUAL_NAMES: dict[PairColumn, tuple[str, ...]] = {
    "prompt": ("prompt", "question", "instruction", "query", "input", "user", "context"),
    "chosen": ("chosen", "accepted", "preferred", "good", "chosen_response", "answer_chosen", "winner", "positive"),
    "rejected": ("rejected", "dispreferred", "bad", "rejected_response", "answer_rejected", "loser", "negative"),
    "system": ("system", "system_prompt", "system_message"),
    "reasoning": ("reasoning", "thinking", "thought", "thoughts", "rationale"),
}


# Words that identify a column with an unusual name, such as answer_good or the_worse_one.
_DISTINCTIVE_WORDS: dict[PairColumn, frozenset[str]] = {
    "prompt": frozenset({"prompt", "question", "instruction", "query"}),
    "chosen": frozenset({"chosen", "accepted", "preferred", "good", "better", "best", "winner", "winning", "positive"}),
    "rejected": frozenset({"rejected", "dispreferred", "bad", "worse", "worst", "loser", "losing", "negative"}),
    "system": frozenset({"system"}),
    "reasoning": frozenset({"reasoning", "thinking", "rationale"}),
}
# Words in the names of metadata columns, which contain no text to train on.
_METADATA_WORDS = frozenset(
    {"id", "score", "rating", "rank", "model", "source", "name", "length", "len", "tokens", "reward", "label"}
)
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")


def guess_mapping(columns: Sequence[str]) -> dict[str, PairColumn]:
    """Return the `column_mapping` that the names suggest, without columns that already have a standard name."""
    by_lower_case = {name.lower(): name for name in columns}
    guessed: dict[str, PairColumn] = {}
    for target, usual in _USUAL_NAMES.items():
        if target in columns:
            continue
        found = next((by_lower_case[name] for name in usual if name in by_lower_case), None)
        found = found or _only_one_with(_DISTINCTIVE_WORDS[target], [name for name in columns if name not in guessed])
        if found is not None and found not in guessed:
            guessed[found] = target
    return guessed


def _only_one_with(words: frozenset[str], columns: Sequence[str]) -> str | None:
    """Return the column with one of the words in its name; None if there are several."""
    found = [
        name
        for name in columns
        if name not in get_args(PairColumn)
        and (own := {word.lower() for word in _WORD.findall(name)}) & words
        and not own & _METADATA_WORDS
    ]
    return found[0] if len(found) == 1 else None
