"""Transcripts: conversations as one text, with the speaker before each turn.

hh-rlhf begins each turn with a blank line and `Human:` or `Assistant:`; HelpSteer separates turns by `<extra_id_1>`.
"""

from __future__ import annotations

import re
from typing import Any

from merlina.data.conversation import UnusableRowError
from merlina.data.readers.files import Row
from merlina.data.row_formats.converter import RowConverter, columns, standard_row, value_of

_SPEAKER = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")
_EXTRA_ID = re.compile(r"\s*<extra_id_1>(User|Assistant)\n")
_ROLES = {"Human": "user", "User": "user", "Assistant": "assistant"}


def is_transcript(value: Any) -> bool:
    """Return whether a value is text that begins with a turn of a human and has one of an assistant."""
    return isinstance(value, str) and value[:12].lstrip().startswith("Human:") and "\n\nAssistant:" in value


def turns_of(transcript: str, column: str) -> list[dict[str, str]]:
    """Return the messages of a transcript. Raises UnusableRowError if it does not begin with a speaker.

    Example: "\\n\\nHuman: Hi\\n\\nAssistant: Hello" gives a user's "Hi" and an assistant's "Hello".
    """
    before, *parts = _SPEAKER.split(transcript)
    if before.strip() or not parts:
        raise UnusableRowError(
            f"{column} is not a transcript: it must begin with 'Human:', each turn after a blank line"
        )
    return _messages(parts)


def question_turns(transcript: str, column: str) -> list[dict[str, str]]:
    """Return the messages of a transcript without the empty turn of the assistant that asks for the answer."""
    turns = turns_of(transcript, column)
    return turns[:-1] if turns[-1] == {"role": "assistant", "content": ""} else turns


def extra_id_turns(prompt: str) -> list[dict[str, str]] | str:
    """Return a prompt of HelpSteer as messages if it has several turns; the first is the user's."""
    first, *parts = _EXTRA_ID.split(prompt)
    return [{"role": "user", "content": first}, *_messages(parts)] if parts else prompt


def _messages(parts: list[str]) -> list[dict[str, str]]:
    """Return messages from speakers and texts in turn."""
    return [
        {"role": _ROLES[speaker], "content": text.strip()}
        for speaker, text in zip(parts[::2], parts[1::2], strict=True)
    ]


def _fits(row: Row) -> bool:
    prompt = row.get("prompt")
    if isinstance(prompt, str) and "chosen" in row:
        if is_transcript(row["chosen"]) and is_transcript(row.get("rejected", row["chosen"])):
            return True
        return is_transcript(prompt) and prompt.rstrip().endswith("\n\nAssistant:")
    return prompt is None and is_transcript(row.get("chosen")) and is_transcript(row.get("rejected"))


def _convert(row: Row) -> Row:
    """Return chosen and rejected as messages, or as text after a prompt of messages."""
    parts = {name: row[name] for name in ("chosen", "rejected") if name in row}
    if (prompt := row.get("prompt")) is not None:
        if any(map(is_transcript, parts.values())):
            # Whole conversations; their common prefix is the prompt.
            whole = {name: turns_of(_text(value, name), name) for name, value in parts.items()}
            return standard_row(row, prompt=question_turns(_text(prompt, "prompt"), "prompt"), **whole)
        parts = {name: _stripped(value) for name, value in parts.items()}
        return standard_row(row, prompt=question_turns(_text(prompt, "prompt"), "prompt"), **parts)
    value_of(row, "chosen")
    return standard_row(row, **{name: _turns_or_blank(value, name) for name, value in parts.items()})


def _turns_or_blank(value: Any, column: str) -> Any:
    text = _text(value, column)
    return turns_of(text, column) if text.strip() else None


def _text(value: Any, column: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise UnusableRowError(f"{column} has the type {type(value).__name__}, not the text of a transcript")
    return value


def _stripped(value: Any) -> Any:
    return value.strip() if isinstance(value, str) else value


HH_RLHF = RowConverter("hh-rlhf transcripts", columns("prompt", "chosen", "rejected"), _fits, _convert)
