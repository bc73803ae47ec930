"""Convert a row to a preference pair: a prompt, a chosen answer and a rejected answer.

1. Each of prompt, chosen and rejected may be text, one message or a list of messages
   (`role`/`content`, or ShareGPT's `from`/`value`).
2. A conversation column replaces the prompt column.
3. If chosen and rejected are whole conversations, their common prefix is the prompt, and the turns after it are the
   answers.

For sft, a row without a rejected answer becomes a demonstration.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from merlina.data.columns import guess_mapping
from merlina.data.conversation import Message, Pair, UnusableRowError
from merlina.data.readers.files import Row
from merlina.data.rendering.reasoning import with_separate_reasoning
from merlina.data.rendering.template_arguments import ARGUMENTS_COLUMN, read_template_arguments
from merlina.data.rendering.tools import read_tool_calls, read_tool_fields, read_tools
from merlina.domain.conversion_rules import ANSWERS_OF_SEVERAL_TURNS, CURRENT_RULES

# In lower case.
_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "ai": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "function_call": "assistant",
}
_REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
_MEDIA_PARTS = ("image", "audio", "video")
_CONVERSATION_COLUMNS = ("conversations", "conversation", "messages")
_COLUMNS_SHOWN = 12
_MAX_BITS_SHOWN = 4096


def to_pair(row: Row, rules: int = CURRENT_RULES) -> Pair:
    """Convert a row to a pair by a version of the rules. Raises UnusableRowError with the reason if it is not one."""
    chosen = _turns(row, "chosen", "assistant")
    rejected = _turns(row, "rejected", "assistant")
    shared = _shared_beginning(chosen, rejected)
    if rules < ANSWERS_OF_SEVERAL_TURNS:
        _refuse_several_turns(chosen[len(shared) :], "chosen")
        _refuse_several_turns(rejected[len(shared) :], "rejected")
    elif shared and shared[0].role == "assistant" and _answers_begin_with(shared, row):
        shared = []
    pair = Pair(
        chosen=_answer(chosen[len(shared) :], "chosen", row),
        rejected=_answer(rejected[len(shared) :], "rejected", row),
        prompt=_with_system(_prompt(row, shared), row),
        tools=_tools(row),
        template_arguments=_template_arguments(row),
    )
    _check_encodable(pair)
    return pair


def to_demonstration(row: Row) -> Pair:
    """Convert a row to a pair without a rejected answer.

    Without a chosen column, the last turn of a conversation is the chosen answer. Raises UnusableRowError.
    """
    conversation = next((name for name in _CONVERSATION_COLUMNS if not is_missing(row.get(name))), None)
    if is_missing(row.get("chosen")) and conversation is not None:
        row = {**{name: value for name, value in row.items() if name != conversation}, "chosen": row[conversation]}
    chosen = _turns(row, "chosen", "assistant")
    pair = Pair(
        chosen=_answer(chosen[-1:], "chosen", row),
        rejected=None,
        prompt=_with_system(_prompt(row, chosen[:-1]), row),
        tools=_tools(row),
        template_arguments=_template_arguments(row),
    )
    _check_encodable(pair)
    return pair


def _check_encodable(pair: Pair) -> None:
    if pair.tools or pair.template_arguments or not all(map(_is_plain, pair.turns)):
        _check_objects(pair)
        _check_texts(pair)


def _is_plain(turn: Message) -> bool:
    """Return whether a message consists of ASCII alone, as nearly all do; Python knows it without reading the text."""
    return turn.content.isascii() and turn.reasoning is None and not turn.tool_calls and not turn.tool_fields


def _check_texts(pair: Pair) -> None:
    answers = (("chosen", pair.chosen), ("rejected", pair.rejected))
    named = [(name, answer.turns) for name, answer in answers if answer is not None]
    for name, turns in [("prompt", pair.prompt), *named]:
        for turn in turns:
            _check_text(name, turn.content)
            _check_text("reasoning", turn.reasoning or "")


def _check_objects(pair: Pair) -> None:
    described: list[Any] = [pair.tools]
    for turn in pair.turns:
        described += [turn.tool_calls, turn.tool_fields]
    for part in filter(None, described):
        _check_text("tools", json.dumps(part, ensure_ascii=False, default=str))
    if pair.template_arguments:
        _check_text(ARGUMENTS_COLUMN, json.dumps(pair.template_arguments, ensure_ascii=False, default=str))


def _check_text(name: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UnusableRowError(f"{name} has half of a surrogate pair at character {error.start + 1}") from error


def _turns(row: Row, column: str, role: str) -> list[Message]:
    """Return a column as messages; plain text becomes one message with the given role."""
    value = row.get(column)
    if isinstance(value, str) and not is_missing(value):
        return [Message(role, value)]
    if column not in row:
        raise UnusableRowError(_missing_message(column, list(row)))
    if is_missing(value):
        raise UnusableRowError(f"{column} is empty", "empty_side")
    if isinstance(value, dict):
        return [_message(value, column)]
    if isinstance(value, list):
        return [turn for turn in [_message(item, column) for item in value] if not _is_empty_system(turn)]
    raise UnusableRowError(f"{column} has the type {type(value).__name__} ({_shown(value)}), not text or messages")


def _missing_message(column: str, columns: Sequence[str]) -> str:
    shown = ", ".join(columns[:_COLUMNS_SHOWN])
    likely = next((name for name, target in guess_mapping(columns).items() if target == column), None)
    example = "can map another column to it" if likely is None else f'{{"{likely}": "{column}"}} would map it'
    message = f"{column} is missing (columns here: {shown}); column_mapping {example}"
    return f"{message}. training_mode sft does not need it" if column == "rejected" else message


def _message(item: Any, column: str) -> Message:
    if not isinstance(item, dict):
        raise UnusableRowError(f"{column} contains {type(item).__name__}s instead of messages")
    # Columnar files add keys without a value.
    role = item["from"] if item.get("role") is None and "from" in item else item.get("role")
    content = item["value"] if item.get("content") is None and "value" in item else item.get("content")
    known = _ROLES.get(role.lower()) if isinstance(role, str) else None
    if known is None:
        raise UnusableRowError(f"{column} has a message with the role {role!r}; supported are {', '.join(_ROLES)}")
    if role == "function_call":
        return Message("assistant", "", tool_calls=read_tool_calls(content, column))
    calls = read_tool_calls(item.get("tool_calls"), column)
    if isinstance(content, list):
        content = _joined_parts(content, column)
    if content is None and calls:
        content = ""
    if not isinstance(content, str):
        raise UnusableRowError(f"{column} has a message with the role {role!r} but without text")
    if known == "assistant":
        message = Message(known, content, _own_reasoning(item, column), calls)
        # Reasoning that is there twice, inline and in a key of its own, is kept in its key.
        return message if message.reasoning is None else _without_inline_reasoning(message)
    return Message(known, content, tool_fields=read_tool_fields(item)) if known == "tool" else Message(known, content)


def is_role(value: Any) -> bool:
    """Return whether a value is the name of a role."""
    return isinstance(value, str) and value.lower() in _ROLES


def _without_inline_reasoning(message: Message) -> Message:
    separate = with_separate_reasoning(replace(message, reasoning=None))
    return replace(message, content=separate.content)


def _own_reasoning(item: dict[str, Any], column: str) -> str | None:
    """Return the reasoning that a message of the assistant has beside its content. Raises UnusableRowError."""
    for key in _REASONING_KEYS:
        if key in item and not is_missing(reasoning := item[key]):
            if not isinstance(reasoning, str):
                raise UnusableRowError(f"{column} has a message with a {key} that is not text")
            return reasoning
    return None


def _is_empty_system(turn: Message) -> bool:
    return turn.role == "system" and not turn.content.strip()


def _joined_parts(parts: list[Any], column: str) -> str:
    """Return the text of content that is a list of typed parts. Raises UnusableRowError if one is not text."""
    kinds = [str(part.get("type")) for part in parts if isinstance(part, dict)]
    medium = next((kind for kind in kinds if any(name in kind for name in _MEDIA_PARTS)), None)
    if medium is not None:
        raise UnusableRowError(
            f"{column} has a message with a part of the type {medium}, and training is on text only; remove such rows"
        )
    texts = [part.get("text") if isinstance(part, dict) else part for part in parts]
    if not all(isinstance(text, str) for text in texts):
        raise UnusableRowError(f"{column} has a message with parts that are not text")
    return "".join(map(str, texts))


def _shared_beginning(chosen: Sequence[Message], rejected: Sequence[Message]) -> list[Message]:
    """Return the common prefix of two conversations, excluding the last message of each."""
    max_shared = min(len(chosen), len(rejected)) - 1
    if max_shared <= 0:
        return []
    count = next((index for index in range(max_shared) if chosen[index] != rejected[index]), max_shared)
    return list(chosen[:count])


def _refuse_several_turns(turns: Sequence[Message], column: str) -> None:
    """Raise UnusableRowError for an answer of several turns.

    A run that an earlier version started was trained without such rows. With them, its resume would continue on other
    data than its checkpoint, with another split.
    """
    if len(turns) > 1:
        raise UnusableRowError(
            f"{column} has {len(turns)} turns after the common prefix of both conversations, and this run was started "
            "by a version of Merlina that skips such rows; a new run trains them"
        )


def _answer(turns: Sequence[Message], column: str, row: Row) -> Message:
    """Return the turns as one answer, with the text of the reasoning column unless it has reasoning of its own."""
    turn, earlier = turns[-1], tuple(turns[:-1])
    if earlier and earlier[0].role != "assistant":
        raise UnusableRowError(
            f"{column} continues with a {earlier[0].role} turn after the common prefix of both conversations, and "
            "answers to different prompts cannot be compared",
            "differing_prompts",
        )
    if turn.role != "assistant":
        raise UnusableRowError(f"{column} ends with a {turn.role} turn, not with an assistant turn")
    if not all(each.has_content for each in turns):
        raise UnusableRowError(f"{column} is empty" if not earlier else f"a turn of {column} is empty", "empty_side")
    if earlier:
        turn = replace(turn, earlier=earlier)
    if turn.reasoning is not None or (reasoning := _optional_text(row, "reasoning")) is None:
        return turn
    has_inline_reasoning = with_separate_reasoning(turn).reasoning is not None
    return turn if has_inline_reasoning else replace(turn, reasoning=reasoning)


def _prompt(row: Row, shared: list[Message]) -> list[Message]:
    """Return the turns before the answer: from the prompt or a conversation column, or shared by both answers."""
    column = _prompt_column(row)
    joined = _joined_prompt(row, column, shared)
    if joined is None:
        raise UnusableRowError(
            f"{column} and the beginning of chosen and rejected are different questions; remove one of them",
            "differing_prompts",
        )
    if not joined:
        if "prompt" in row:
            raise UnusableRowError("prompt is empty", "empty_side")
        _turns(row, "prompt", "user")
    if not joined or joined[-1].role not in ("user", "tool"):
        raise UnusableRowError(f"{column or 'the prompt'} does not end with a user turn")
    if not joined[-1].content.strip():
        raise UnusableRowError("prompt is empty", "empty_side")
    return joined


def _answers_begin_with(shared: list[Message], row: Row) -> bool:
    """Return whether turns that both answers share follow the prompt of the row, so that they belong to the answers."""
    return _joined_prompt(row, _prompt_column(row), shared) is None


def _joined_prompt(row: Row, column: str | None, shared: list[Message]) -> list[Message] | None:
    """Return the turns of the column, if any, joined with those that both answers share; None if they do not fit."""
    given = _turns(row, column, "user") if column else []
    # Some data sets repeat the chosen answer at the end of the conversation.
    asked = _without_last_answers(given) if column in _CONVERSATION_COLUMNS else given
    joined = _joined(asked, shared)
    return _joined(given, shared) if joined is None and asked != given else joined


def _prompt_column(row: Row) -> str | None:
    if not is_missing(row.get("prompt")):
        return "prompt"
    return next((name for name in _CONVERSATION_COLUMNS if not is_missing(row.get(name))), None)


def _without_last_answers(turns: list[Message]) -> list[Message]:
    kept = list(turns)
    while kept and kept[-1].role == "assistant":
        kept.pop()
    return kept


def _joined(given: list[Message], shared: list[Message]) -> list[Message] | None:
    """Return the turns of the prompt column, followed by those that both answers share, without their overlap.

    Data sets repeat the prompt in the answers in different ways: completely, its last turn, or the turns before it.
    None if they do not overlap and one does not continue the other: both end with a question of the user.
    """
    if not shared or not given:
        return shared or given
    texts = [turn.content.strip() for turn in given]
    repeated = [turn.content.strip() for turn in shared]
    if texts in (repeated[: len(texts)], repeated[len(repeated) - len(texts) :]):
        return shared
    overlap = next(
        size for size in range(min(len(texts), len(repeated)), -1, -1) if texts[len(texts) - size :] == repeated[:size]
    )
    if overlap == 0 and given[-1].role == "user":
        return None
    return given + shared[overlap:]


def _with_system(prompt: list[Message], row: Row) -> tuple[Message, ...]:
    system = _optional_text(row, "system")
    if system is None or prompt[0].role == "system":
        return tuple(prompt)
    return (Message("system", system), *prompt)


def _tools(row: Row) -> tuple[Mapping[str, Any], ...]:
    value = row.get("tools")
    return () if is_missing(value) else read_tools(value)


def _template_arguments(row: Row) -> Mapping[str, Any]:
    value = row.get(ARGUMENTS_COLUMN)
    return {} if is_missing(value) else read_template_arguments(value)


def _optional_text(row: Row, column: str) -> str | None:
    value = row.get(column)
    if is_missing(value):
        return None
    if not isinstance(value, str):
        raise UnusableRowError(f"{column} has the type {type(value).__name__} ({_shown(value)}), not text")
    return value


def _shown(value: Any) -> str:
    """Return the beginning of a value for a message; Python refuses to format integers of thousands of digits."""
    is_long = isinstance(value, int) and value.bit_length() > _MAX_BITS_SHOWN
    return f"{value.bit_length():,} bits" if is_long else str(value)[:40]


def is_missing(value: Any) -> bool:
    """Return whether a column has no value: null, NaN, an empty list, or blank text."""
    if isinstance(value, str):
        return not value.strip()
    return value is None or value == [] or (isinstance(value, float) and math.isnan(value))
