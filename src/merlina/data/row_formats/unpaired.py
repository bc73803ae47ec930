"""Unpaired rows: one answer with a label that states whether it is good, as for KTO and from thumbs up or down."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from merlina.data.conversation import Pair, UnusableRowError
from merlina.data.pairs import to_demonstration
from merlina.data.readers.files import Row
from merlina.data.row_formats.conversations import CONVERSATION_COLUMNS
from merlina.data.row_formats.converter import (
    RowConverter,
    columns,
    first_of,
    number_of,
    shown,
    standard_row,
    value_of,
)
from merlina.data.row_formats.instructions import instruction_turns
from merlina.schemas.datasets.config import AnswersNeeded

_PROMPTS = ("prompt", "question", "query", "input")
_ANSWERS = ("completion", "response", "answer", "output")
_LABELS = ("label", "kto_tag", "feedback", "thumbs_up", "thumbs", "thumb")
_TRUE = frozenset(
    {"true", "yes", "1", "good", "desirable", "thumbs_up", "thumbs up", "up", "like", "liked", "positive", "👍"}
)
_FALSE = frozenset(
    {"false", "no", "0", "-1", "bad", "undesirable", "thumbs_down", "thumbs down", "down", "dislike", "disliked"}
    | {"negative", "👎"}
)


def label_of(value: Any) -> bool | None:
    """Return whether a label says that the answer is good; None if it is not a label."""
    if isinstance(value, str):
        name = value.strip().lower()
        # CSV files have numbers as text, those of columns with gaps as 1.0 and 0.0.
        name = name.removesuffix(".0")
        return True if name in _TRUE else False if name in _FALSE else None
    if isinstance(value, bool):
        return value
    number = number_of(value)
    return None if number not in (-1, 0, 1) else number == 1


def is_unpaired(row: Row) -> bool:
    """Return whether a standard row has one answer with a label; a pair may occur among such rows."""
    return "label" in row and "rejected" not in row


def to_unpaired(row: Row, answers_needed: AnswersNeeded) -> Pair:
    """Return a standard row as a pair with one answer: `chosen` if its label is true, otherwise `rejected`.

    Raises UnusableRowError if the answers that are needed include another one.
    """
    if answers_needed == "both":
        raise UnusableRowError(
            "the row is unpaired: it has one answer with a label, and training needs a chosen and a rejected one; "
            "training_mode kto uses unpaired answers, and sft those with a true label"
        )
    if answers_needed == "chosen" and not row["label"]:
        raise UnusableRowError("the label of the answer is false, and sft trains on good answers only")
    pair = to_demonstration(row)
    return pair if row["label"] else replace(pair, chosen=None, rejected=pair.chosen)


def _fits(row: Row) -> bool:
    label = first_of(row, _LABELS)
    if label is None or "chosen" in row or label_of(row[label]) is None:
        return False
    has_question = first_of(row, ("instruction", *_PROMPTS)) is not None
    return first_of(row, CONVERSATION_COLUMNS) is not None or (has_question and first_of(row, _ANSWERS) is not None)


def _convert(row: Row) -> Row:
    """Return the row of a demonstration with `label`, a bool."""
    value = value_of(row, *_LABELS)
    label = label_of(value)
    if label is None:
        raise UnusableRowError(f"{first_of(row, _LABELS)} is {shown(value)}; true (a good answer) or false is needed")
    if "instruction" in row:
        prompt: Any = instruction_turns(row)
    elif (conversation := first_of(row, CONVERSATION_COLUMNS)) and first_of(row, _ANSWERS) is None:
        return standard_row(row, messages=row[conversation], label=label)
    else:
        prompt = value_of(row, *_PROMPTS, *CONVERSATION_COLUMNS)
    return standard_row(row, prompt=prompt, chosen=value_of(row, *_ANSWERS), label=label)


UNPAIRED = RowConverter(
    "Unpaired answers with a label",
    columns("instruction", "history", *CONVERSATION_COLUMNS, *_PROMPTS, *_ANSWERS, *_LABELS),
    _fits,
    _convert,
)
