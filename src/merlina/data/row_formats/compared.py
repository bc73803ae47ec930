"""Rows with two answers and a label for the better one: Chatbot Arena, SafeRLHF, SHP, HelpSteer preferences."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from merlina.data.conversation import UnusableRowError
from merlina.data.readers.files import Row
from merlina.data.row_formats.converter import (
    RowConverter,
    columns,
    first_of,
    number_of,
    shown,
    standard_row,
    value_of,
)
from merlina.data.row_formats.transcripts import extra_id_turns


@dataclass(frozen=True)
class _Comparison:
    """Columns of two answers, of the prompt, and of the label. `winner` returns 0 or 1, None for a tie.

    Each of the columns may have one of several names. `winner` raises UnusableRowError for an unknown label; without
    `label`, the first answer is the better one.
    """

    title: str
    first: tuple[str, ...]
    second: tuple[str, ...]
    prompt: tuple[str, ...]
    label: tuple[str, ...] = ()
    winner: Callable[[Any, str], int | None] = lambda _value, _column: 0

    def fits(self, row: Row) -> bool:
        needed = [self.first, self.second, *([self.label] if self.label else [])]
        return all(first_of(row, names) is not None for names in needed)

    def convert(self, row: Row) -> Row:
        """Return the better answer as chosen; the answers may be whole conversations, without a prompt."""
        answers = value_of(row, *self.first), value_of(row, *self.second)
        label = value_of(row, *self.label) if self.label else None
        winner = self.winner(label, str(first_of(row, self.label)))
        if winner is None:
            raise UnusableRowError(f"{first_of(row, self.label)} is {shown(label)}: the answers are tied")
        asked = first_of(row, self.prompt)
        prompt = {} if asked is None else {"prompt": _prompt(row[asked])}
        return standard_row(row, **prompt, chosen=answers[winner], rejected=answers[1 - winner])

    def converter(self) -> RowConverter:
        read = columns(*self.first, *self.second, *self.prompt, *self.label)
        return RowConverter(self.title, read, self.fits, self.convert)


def _prompt(value: Any) -> Any:
    return extra_id_turns(value) if isinstance(value, str) else value


def _named_winner(value: Any, column: str) -> int | None:
    """Return the winner for `model_a`, `a`, `response_a`, … or `tie`."""
    name = value.strip().lower() if isinstance(value, str) else ""
    if name.startswith("tie") or name in ("both", "both_bad", "bothbad", "neither"):
        return None
    if name[-1:] in ("a", "b") and name in _WINNERS:
        return "ab".index(name[-1])
    raise UnusableRowError(f"{column} is {shown(value)}; model_a, model_b and tie are understood")


_WINNERS = frozenset(
    f"{kind}{side}" for kind in ("", "model_", "response_", "assistant_", "conversation_") for side in "ab"
)


def _index(value: Any, column: str) -> int | None:
    """Return the winner for 0, the first answer, and 1, the second."""
    number = number_of(value)
    if number not in (0, 1):
        raise UnusableRowError(f"{column} is {shown(value)}; 0 (the first answer) and 1 (the second) are understood")
    return int(number)


def _first_is_one(value: Any, column: str) -> int | None:
    """Return the winner for 1, the first answer, and 0, the second."""
    number = number_of(value)
    if number not in (0, 1):
        raise UnusableRowError(f"{column} is {shown(value)}; 1 (answer A) and 0 (answer B) are understood")
    return 1 - int(number)


def _strength(value: Any, column: str) -> int | None:
    """Return the winner for a negative number, the first answer, and a positive one, the second."""
    number = number_of(value)
    if number is None:
        raise UnusableRowError(f"{column} is {shown(value)}, not a number from -3 (first answer) to 3 (second answer)")
    return None if number == 0 else int(number > 0)


ARENA = _Comparison(
    "Chatbot Arena",
    first=("conversation_a", "response_a", "answer_a"),
    second=("conversation_b", "response_b", "answer_b"),
    prompt=("prompt", "question", "instruction"),
    label=("winner",),
    winner=_named_winner,
).converter()
SAFE_RLHF = _Comparison(
    "SafeRLHF",
    first=("response_0",),
    second=("response_1",),
    prompt=("prompt", "question"),
    label=("better_response_id",),
    winner=_index,
).converter()
STACK_EXCHANGE = _Comparison(
    "Stack Exchange paired",
    first=("response_j",),
    second=("response_k",),
    prompt=("question", "prompt"),
).converter()
SHP = _Comparison(
    "SHP",
    first=("human_ref_A",),
    second=("human_ref_B",),
    prompt=("history", "prompt"),
    label=("labels",),
    winner=_first_is_one,
).converter()
HELPSTEER_PREFERENCE = _Comparison(
    "HelpSteer preferences",
    first=("response_1", "response1"),
    second=("response_2", "response2"),
    prompt=("prompt", "context"),
    label=("preference_strength", "overall_preference"),
    winner=_strength,
).converter()
