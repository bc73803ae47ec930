"""Rows with an instruction or question in a column of its own: Alpaca, Argilla, Orca DPO, prompts with one answer."""

from __future__ import annotations

from typing import Any

from merlina.data.conversation import UnusableRowError
from merlina.data.pairs import is_missing
from merlina.data.readers.files import Row
from merlina.data.row_formats.converter import (
    RowConverter,
    columns,
    first_of,
    has,
    standard_row,
    text_of,
    value_of,
)

_QUESTIONS = ("question", "query", "input")
_ANSWERS = ("answer", "response", "output", "completion")


def instruction_turns(row: Row) -> list[dict[str, Any]]:
    """Return instruction and input, joined by a newline, after the turns of `history`. Raises UnusableRowError."""
    parts = [text_of(row, "instruction"), text_of(row, "input") if "input" in row else ""]
    question = "\n".join(part for part in parts if part)
    return [*_history(row.get("history")), {"role": "user", "content": question}]


def _history(value: Any) -> list[dict[str, Any]]:
    """Return the turns of a list of [question, answer]. Raises UnusableRowError."""
    if is_missing(value):
        return []
    if not isinstance(value, list) or not all(isinstance(turn, list) and len(turn) == 2 for turn in value):
        raise UnusableRowError("history is not a list of [question, answer]")
    return [
        {"role": role, "content": text}
        for turn in value
        for role, text in zip(("user", "assistant"), turn, strict=True)
    ]


def _is_alpaca(row: Row) -> bool:
    return "instruction" in row and ("output" in row or has(row, "chosen", "rejected"))


def _from_alpaca(row: Row) -> Row:
    prompt = instruction_turns(row)
    if "chosen" in row:
        return standard_row(row, prompt=prompt, **{name: row[name] for name in ("chosen", "rejected") if name in row})
    output = value_of(row, "output")
    if not isinstance(output, list):
        return standard_row(row, prompt=prompt, chosen=output)
    if len(output) != 2:
        raise UnusableRowError(f"output has {len(output)} answers; it needs two, the chosen and the rejected one")
    return standard_row(row, prompt=prompt, chosen=output[0], rejected=output[1])


def _is_orca(row: Row) -> bool:
    return has(row, "chosen", "rejected") and first_of(row, ("question", "input")) is not None


def _from_orca(row: Row) -> Row:
    prompt = text_of(row, "question", "input")
    return standard_row(row, prompt=prompt, chosen=value_of(row, "chosen"), rejected=value_of(row, "rejected"))


def _is_argilla(row: Row) -> bool:
    return has(row, "chosen_response", "rejected_response") and first_of(row, ("instruction", "prompt")) is not None


def _from_argilla(row: Row) -> Row:
    return standard_row(
        row,
        prompt=value_of(row, "instruction", "prompt"),
        chosen=value_of(row, "chosen_response"),
        rejected=value_of(row, "rejected_response"),
    )


def _has_completion(row: Row) -> bool:
    return "prompt" in row and first_of(row, ("completion", *_ANSWERS)) is not None


def _from_completion(row: Row) -> Row:
    return standard_row(row, prompt=value_of(row, "prompt"), chosen=value_of(row, "completion", *_ANSWERS))


def _has_answer(row: Row) -> bool:
    return first_of(row, _QUESTIONS) is not None and first_of(row, _ANSWERS) is not None


def _from_answer(row: Row) -> Row:
    return standard_row(row, prompt=value_of(row, *_QUESTIONS), chosen=value_of(row, *_ANSWERS))


ALPACA = RowConverter(
    "Alpaca",
    columns("instruction", "input", "output", "history", "chosen", "rejected"),
    _is_alpaca,
    _from_alpaca,
)
ORCA_DPO = RowConverter("Orca DPO", columns("question", "input", "chosen", "rejected"), _is_orca, _from_orca)
ARGILLA = RowConverter(
    "Argilla binarized",
    columns("instruction", "prompt", "chosen_response", "rejected_response"),
    _is_argilla,
    _from_argilla,
)
PROMPT_COMPLETION = RowConverter(
    "Prompt and completion", columns("prompt", *_ANSWERS), _has_completion, _from_completion
)
QUESTION_ANSWER = RowConverter("Question and answer", columns(*_QUESTIONS, *_ANSWERS), _has_answer, _from_answer)
