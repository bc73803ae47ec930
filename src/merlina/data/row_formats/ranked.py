"""Rows with several answers and their ranks or scores: UltraFeedback, Nectar, HelpSteer, rated generations."""

from __future__ import annotations

from functools import partial
from typing import Any

from merlina.data.conversation import UnusableRowError
from merlina.data.readers.files import Row
from merlina.data.row_formats.converter import (
    RowConverter,
    columns,
    first_of,
    has,
    number_of,
    shown,
    standard_row,
    text_of,
    value_of,
)
from merlina.data.row_formats.ranked_answers import RankedAnswers
from merlina.data.row_formats.transcripts import extra_id_turns, is_transcript, question_turns

_PROMPTS = ("prompt", "instruction", "question", "input")
_TEXTS = ("response", "answer", "text", "content", "completion", "output")
# UltraFeedback's overall_score contains errors; fine-grained_score, the mean of its four ratings, does not.
_SCORES = ("fine-grained_score", "overall_score", "score", "rating")
_LISTS = ("generations", "responses", "completions", "answers")
_RATINGS = ("ratings", "rating", "scores")


def _question(row: Row) -> Row:
    """Return the row of the prompt, which may be text, a transcript or messages. Raises UnusableRowError."""
    prompt = value_of(row, *_PROMPTS)
    if is_transcript(prompt):
        prompt = question_turns(prompt, "prompt")
    return standard_row(row, prompt=prompt)


def _has_items(row: Row, column: str, keys: tuple[str, ...]) -> bool:
    """Return whether a column is a list of objects, of which the first has one of the keys."""
    items = row.get(column)
    return (
        isinstance(items, list) and bool(items) and isinstance(items[0], dict) and not items[0].keys().isdisjoint(keys)
    )


def _from_items(row: Row, column: str, keys: tuple[str, ...], sign: int) -> RankedAnswers:
    """Return the answers in a column of objects with one of the keys as score; with sign -1, the lowest is best."""
    items = _list(value_of(row, column), column)
    for item in items:
        if not isinstance(item, dict):
            raise UnusableRowError(f"{column} contains {type(item).__name__}s instead of objects with an answer")
    # Scores of different scales cannot be compared.
    in_all = (name for name in keys if all(item.get(name) is not None for item in items))
    key = next(in_all, first_of(items[0], keys) if items else None) or keys[0]
    answers = []
    for number, item in enumerate(items, start=1):
        text = first_of(item, _TEXTS)
        if text is None:
            raise UnusableRowError(
                f"answer {number} of {column} has no text; one of the keys {', '.join(_TEXTS)} is needed"
            )
        answers.append((sign * _score(item.get(key), key, number), item[text]))
    return RankedAnswers(_question(row), tuple(answers))


def _is_rated(row: Row) -> bool:
    texts, ratings = first_of(row, _LISTS), first_of(row, _RATINGS)
    return texts is not None and ratings is not None and isinstance(row[ratings], list) and _is_texts(row[texts])


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def _from_ratings(row: Row) -> RankedAnswers:
    texts = _list(value_of(row, *_LISTS), str(first_of(row, _LISTS)))
    column = str(first_of(row, _RATINGS) or _RATINGS[0])
    ratings = _list(value_of(row, *_RATINGS), column)
    if len(texts) != len(ratings):
        raise UnusableRowError(f"{column} has {len(ratings)} numbers for {len(texts)} answers; each answer needs one")
    scores = [_score(rating, column, number) for number, rating in enumerate(ratings, start=1)]
    return RankedAnswers(_question(row), tuple(zip(scores, texts, strict=True)))


def _is_helpsteer(row: Row) -> bool:
    return has(row, "prompt", "response", "helpfulness")


def _from_helpsteer(row: Row) -> RankedAnswers:
    prompt, response = text_of(row, "prompt"), value_of(row, "response")
    score = number_of(value_of(row, "helpfulness"))
    if score is None:
        raise UnusableRowError(f"helpfulness is {shown(row['helpfulness'])}, not a number")
    return RankedAnswers(standard_row(row, prompt=extra_id_turns(prompt)), ((score, response),))


def _list(value: Any, column: str) -> list[Any]:
    if value is None:
        raise UnusableRowError(f"{column} is empty", "empty_side")
    if not isinstance(value, list):
        raise UnusableRowError(f"{column} has the type {type(value).__name__}, not a list")
    return value


def _score(value: Any, key: str, answer: int) -> float:
    number = number_of(value)
    if number is None:
        raise UnusableRowError(f"answer {answer} has no number as its {key} ({shown(value)})")
    return number


ULTRAFEEDBACK = RowConverter(
    "UltraFeedback completions",
    columns("instruction", "prompt", "completions"),
    partial(_has_items, column="completions", keys=_SCORES),
    partial(_from_items, column="completions", keys=_SCORES, sign=1),
)
NECTAR = RowConverter(
    "Nectar ranked answers",
    columns("prompt", "answers"),
    partial(_has_items, column="answers", keys=("rank",)),
    partial(_from_items, column="answers", keys=("rank",), sign=-1),
)
RATED_GENERATIONS = RowConverter("Rated generations", columns(*_PROMPTS, *_LISTS, *_RATINGS), _is_rated, _from_ratings)
HELPSTEER = RowConverter(
    "HelpSteer scored responses",
    columns("prompt", "response", "helpfulness"),
    _is_helpsteer,
    _from_helpsteer,
    merges_adjacent=True,
)
