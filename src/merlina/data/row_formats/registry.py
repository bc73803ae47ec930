"""The row formats, and the detection of a data set's format from its first rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from merlina.data.columns import guess_mapping
from merlina.data.readers.files import Row
from merlina.data.row_formats.compared import ARENA, HELPSTEER_PREFERENCE, SAFE_RLHF, SHP, STACK_EXCHANGE
from merlina.data.row_formats.conversations import MESSAGES, SHAREGPT, STANDARD
from merlina.data.row_formats.converter import RowConverter
from merlina.data.row_formats.instructions import ALPACA, ARGILLA, ORCA_DPO, PROMPT_COMPLETION, QUESTION_ANSWER
from merlina.data.row_formats.openai_preference import OPENAI_PREFERENCE
from merlina.data.row_formats.ranked import HELPSTEER, NECTAR, RATED_GENERATIONS, ULTRAFEEDBACK
from merlina.data.row_formats.transcripts import HH_RLHF
from merlina.data.row_formats.unpaired import UNPAIRED
from merlina.schemas.datasets.config import RowFormat
from merlina.schemas.datasets.responses import DetectedFormat

# In the order of detection: a row that fits several formats has the first of them.
ROW_FORMATS: dict[RowFormat, RowConverter] = {
    "openai_preference": OPENAI_PREFERENCE,
    "hh_rlhf": HH_RLHF,
    "unpaired": UNPAIRED,
    "sharegpt": SHAREGPT,
    "standard": STANDARD,
    "argilla": ARGILLA,
    "alpaca": ALPACA,
    "orca_dpo": ORCA_DPO,
    "helpsteer_preference": HELPSTEER_PREFERENCE,
    "arena": ARENA,
    "safe_rlhf": SAFE_RLHF,
    "stack_exchange": STACK_EXCHANGE,
    "shp": SHP,
    "nectar": NECTAR,
    "ultrafeedback": ULTRAFEEDBACK,
    "rated_generations": RATED_GENERATIONS,
    "helpsteer": HELPSTEER,
    "messages": MESSAGES,
    "prompt_completion": PROMPT_COMPLETION,
    "question_answer": QUESTION_ANSWER,
}

WITH_ONE_ANSWER: frozenset[RowFormat | None] = frozenset(
    {"unpaired", "sharegpt", "messages", "prompt_completion", "question_answer"}
)


def detect(rows: Sequence[Row]) -> RowFormat | None:
    """Return the format that most of the rows have; None if none of them has a known one."""
    found = Counter(name for row in rows if (name := format_of(row)) is not None)
    return found.most_common(1)[0][0] if found else None


def described(name: RowFormat | None) -> DetectedFormat | None:
    """Return the format with its title; None without a format."""
    return None if name is None else DetectedFormat(name=name, title=ROW_FORMATS[name].title)


def format_of(row: Row) -> RowFormat | None:
    """Return the format that one row has, None if it is unknown."""
    found = next((name for name, converter in ROW_FORMATS.items() if converter.fits(row)), None)
    return None if found in WITH_ONE_ANSWER and _can_be_mapped(row) else found


def _can_be_mapped(row: Row) -> bool:
    """Return whether a mapping of the column names would give a pair."""
    return {"chosen", "rejected"} <= set(guess_mapping(list(row)).values())
