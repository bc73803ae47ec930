"""Unpaired rows: one answer with a label that tells whether it is a good one, as for KTO and from thumbs up or down."""

from __future__ import annotations

from typing import Any

from merlina.data.conversation import UnusableRowError
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
        return True if name in _TRUE else False if name in _FALSE else None
    if isinstance(value, bool):
        return value
    number = number_of(value)
    return None if number not in (-1, 0, 1) else number == 1


def refuse_unpaired(row: Row, *, needs_rejected: bool) -> None:
    """Raise UnusableRowError if a converted row cannot be used: pairs are needed, or the label is false."""
    if needs_rejected:
        raise UnusableRowError(
            "the row is unpaired: it has one answer with a label, and training needs a chosen and a rejected one; "
            "training_mode sft uses answers with a true label"
        )
    if not row["label"]:
        raise UnusableRowError("the label of the answer is false, and sft trains on good answers only")


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
