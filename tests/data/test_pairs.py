from __future__ import annotations

import json
from dataclasses import replace
from functools import reduce
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from merlina.data.conversation import Message, Pair, UnusableRowError, assistant
from merlina.data.pairs import to_demonstration, to_pair

USER = Message("user", "Why?")
FORMS: dict[str, dict[str, Any]] = {
    "plain": {"prompt": "Why?", "chosen": "So.", "rejected": "No."},
    "message lists": {
        "prompt": [{"role": "user", "content": "Why?"}],
        "chosen": [{"role": "assistant", "content": "So."}],
        "rejected": [{"role": "assistant", "content": "No."}],
    },
    "single messages": {
        "conversations": [{"from": "human", "value": "Why?"}],
        "chosen": {"from": "gpt", "value": "So."},
        "rejected": {"from": "gpt", "value": "No."},
    },
    "implicit prompt": {
        "chosen": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}],
        "rejected": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "No."}],
    },
    "prompt repeated": {
        "prompt": "Why?",
        "chosen": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}],
        "rejected": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "No."}],
    },
    "typed parts": {
        "prompt": "Why?",
        "chosen": [{"role": "assistant", "content": [{"type": "text", "text": "So."}]}],
        "rejected": "No.",
    },
    "nothing in other columns": {"prompt": "Why?", "chosen": "So.", "rejected": "No.", "system": None, "reasoning": ""},
}


@pytest.mark.parametrize("form", FORMS)
def test_every_supported_form_gives_the_same_pair(form: str) -> None:
    assert to_pair(FORMS[form]) == Pair((USER,), assistant("So."), assistant("No."))


def test_several_turns_and_the_system_message_are_kept() -> None:
    turns = [("system", "Be brief."), ("human", "Hi"), ("gpt", "Hello"), ("human", "Why?")]
    row = {
        "conversations": [{"from": role, "value": value} for role, value in turns],
        "chosen": {"from": "gpt", "value": "So."},
        "rejected": {"from": "gpt", "value": "No."},
    }
    expected = (Message("system", "Be brief."), Message("user", "Hi"), Message("assistant", "Hello"), USER)
    assert to_pair(row).prompt == expected


def test_a_system_column_comes_first_and_only_once() -> None:
    row = {**FORMS["plain"], "system": "Be brief."}
    assert to_pair(row).prompt == (Message("system", "Be brief."), USER)
    whole = [{"role": "system", "content": "Own."}, {"role": "user", "content": "Why?"}]
    assert to_pair({**row, "prompt": whole}).prompt == (Message("system", "Own."), USER)


def test_conversations_share_only_their_common_beginning() -> None:
    def chat(*contents: str) -> list[dict[str, str]]:
        return [
            {"role": role, "content": text} for role, text in zip(["user", "assistant"] * 2, contents, strict=False)
        ]

    pair = to_pair({"chosen": chat("a", "b", "c", "d"), "rejected": chat("a", "x", "c", "d")})
    assert [turn.content for turn in pair.prompt] == ["a"]
    assert pair.chosen == Message("assistant", "d", earlier=(Message("assistant", "b"), Message("user", "c")))
    assert pair.rejected == Message("assistant", "d", earlier=(Message("assistant", "x"), Message("user", "c")))
    assert not pair.has_identical_answers
    with pytest.raises(UnusableRowError, match="chosen continues with a user turn"):
        to_pair({"chosen": chat("a", "b", "c", "d"), "rejected": chat("a", "b", "x", "d")})


def test_a_repeated_chosen_answer_is_removed_from_the_conversation() -> None:
    row = {
        "conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}],
        "chosen": {"from": "gpt", "value": "So."},
        "rejected": {"from": "gpt", "value": "No."},
    }
    assert to_pair(row) == Pair((USER,), assistant("So."), assistant("No."))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"chosen": ""}, "chosen is empty"),
        ({"chosen": "  \n"}, "chosen is empty"),
        ({"rejected": None}, "rejected is empty"),
        ({"rejected": float("nan")}, "rejected is empty"),
        ({"chosen": 42}, r"chosen has the type int \(42\), not text"),
        ({"prompt": ""}, "prompt is empty"),
        ({"prompt": 3}, "prompt has the type int"),
        ({"chosen": [{"role": "narrator", "content": "x"}]}, "role 'narrator'"),
        ({"chosen": [{"role": "tool", "content": "x"}]}, "ends with a tool turn"),
        ({"chosen": ["x"]}, "chosen contains strs"),
        ({"chosen": [{"role": "assistant", "content": None}]}, "without text"),
        ({"chosen": [{"role": "user", "content": "x"}]}, "ends with a user turn"),
        ({"prompt": [{"role": "assistant", "content": "x"}]}, "does not end with a user turn"),
        ({"system": 7}, "system has the type int"),
    ],
)
def test_unusable_rows_have_a_reason(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(UnusableRowError, match=reason):
        to_pair({**FORMS["plain"], **changes})


def test_a_missing_column_is_reported_with_the_existing_ones() -> None:
    with pytest.raises(UnusableRowError, match=r"chosen is missing \(columns here: prompt, answer\)"):
        to_pair({"prompt": "Why?", "answer": "So."})
    with pytest.raises(UnusableRowError, match="prompt is missing"):
        to_pair({"chosen": "So.", "rejected": "No."})


content = st.text(min_size=1).filter(str.strip)


@given(
    turns=st.lists(content, min_size=1, max_size=7).filter(lambda t: len(t) % 2 == 1), chosen=content, rejected=content
)
def test_content_is_neither_lost_nor_changed(turns: list[str], chosen: str, rejected: str) -> None:
    roles = ["human", "gpt"] * len(turns)
    row = {
        "conversations": [{"from": role, "value": text} for role, text in zip(roles, turns, strict=False)],
        "chosen": {"from": "gpt", "value": chosen},
        "rejected": {"from": "gpt", "value": rejected},
    }
    pair = to_pair(row)
    assert [message.content for message in pair.prompt] == turns
    assert [turn.content for turn in pair.answers] == [chosen, rejected]


@pytest.mark.parametrize("role", [None, 3, ["user"], {"a": 1}, "narrator"])
def test_an_invalid_role_makes_only_its_row_unusable(role: object) -> None:
    row = {"prompt": "p", "chosen": [{"role": role, "content": "c"}], "rejected": "r"}
    with pytest.raises(UnusableRowError, match="has a message with the role"):
        to_pair(row)


Q1, A1, Q2 = (
    {"role": "user", "content": "Q1"},
    {"role": "assistant", "content": "A1"},
    {"role": "user", "content": "Q2"},
)
SYSTEM = {"role": "system", "content": "S"}


@pytest.mark.parametrize(
    ("prompt", "shared", "whole"),
    [
        ("Q1", [Q1, A1, Q2], ["Q1", "A1", "Q2"]),
        ("Q2", [Q1, A1, Q2], ["Q1", "A1", "Q2"]),
        ([SYSTEM, Q1], [Q1], ["S", "Q1"]),
        ([SYSTEM, Q1, A1], [Q1, A1, Q2], ["S", "Q1", "A1", "Q2"]),
        ([Q1, A1], [Q2], ["Q1", "A1", "Q2"]),
    ],
)
def test_a_prompt_repeated_in_the_answers_occurs_once(prompt: Any, shared: list[Any], whole: list[str]) -> None:
    answers = {name: [*shared, {"role": "assistant", "content": name}] for name in ("chosen", "rejected")}
    pair = to_pair({"prompt": prompt, **answers})
    assert [turn.content for turn in pair.prompt] == whole


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Why?", "chosen": "So."},
        {"prompt": "Why?", "chosen": "So.", "rejected": ""},
        {"chosen": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]},
        {"messages": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]},
        {"conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}]},
        {"conversations": [{"from": "human", "value": "Why?"}], "chosen": {"from": "gpt", "value": "So."}},
    ],
)
def test_a_demonstration_needs_no_rejected_answer(row: dict[str, Any]) -> None:
    assert to_demonstration(row) == Pair((USER,), assistant("So."), None)


def test_a_demonstration_without_an_answer_is_unusable_with_a_reason() -> None:
    with pytest.raises(UnusableRowError, match="chosen ends with a user turn"):
        to_demonstration({"messages": [{"role": "user", "content": "Why?"}]})
    with pytest.raises(UnusableRowError, match="chosen is missing"):
        to_demonstration({"prompt": "Why?"})


def test_a_missing_column_is_reported_with_a_likely_candidate() -> None:
    with pytest.raises(UnusableRowError, match=r'column_mapping {"bad": "rejected"} would map it\. training_mode sft'):
        to_pair({"prompt": "Why?", "chosen": "So.", "bad": "No."})


def turns(*texts: str) -> list[dict[str, str]]:
    return [
        {"role": role, "content": text} for role, text in zip(["user", "assistant"] * len(texts), texts, strict=False)
    ]


@pytest.mark.parametrize("column", ["messages", "conversation"])
def test_a_conversation_that_repeats_the_chosen_answer_gives_it_once(column: str) -> None:
    row = {column: turns("Q", "A"), "chosen": turns("Q", "A"), "rejected": turns("Q", "B")}
    assert to_pair(row) == Pair((Message("user", "Q"),), assistant("A"), assistant("B"))
    longer = {
        column: turns("1", "a", "2", "A"),
        "chosen": turns("1", "a", "2", "A"),
        "rejected": turns("1", "a", "2", "B"),
    }
    assert [turn.content for turn in to_pair(longer).prompt] == ["1", "a", "2"]


def test_a_conversation_may_precede_what_the_answers_begin_with() -> None:
    row = {"messages": turns("1", "a"), "chosen": turns("2", "A"), "rejected": turns("2", "B")}
    assert [turn.content for turn in to_pair(row).prompt] == ["1", "a", "2"]


@pytest.mark.parametrize(
    ("convert", "row"),
    [
        (to_pair, {"prompt": "River", "chosen": turns("Name a river", "A"), "rejected": turns("Name a river", "B")}),
        (to_demonstration, {"prompt": "geography", "messages": turns("Name a river", "A")}),
    ],
)
def test_two_different_questions_are_refused(convert: Any, row: dict[str, Any]) -> None:
    with pytest.raises(UnusableRowError, match=r"prompt and the beginning of .* are different questions"):
        convert(row)


def test_an_answers_own_thought_wins_over_the_reasoning_column() -> None:
    pair = to_pair({**FORMS["plain"], "chosen": "<think>own</think>So.", "reasoning": "column"})
    assert pair.chosen == assistant("<think>own</think>So.")
    assert pair.rejected == Message("assistant", "No.", "column")


def test_a_thought_that_a_message_has_twice_is_kept_once() -> None:
    twice = {"role": "assistant", "content": "<think>own</think>So.", "reasoning_content": "own"}
    assert to_pair({**FORMS["plain"], "chosen": [twice]}).chosen == Message("assistant", "So.", "own")


def test_keys_without_a_value_are_as_good_as_missing() -> None:
    message = {"role": None, "from": "gpt", "content": None, "value": "So.", "tool_calls": None}
    assert to_pair({**FORMS["plain"], "chosen": [message], "tools": None}) == to_pair(FORMS["plain"])
    assert to_demonstration({"messages": turns("Why?", "So."), "chosen": None}) == Pair((USER,), assistant("So."), None)


CALL = {"type": "function", "function": {"name": "find", "arguments": {"city": "Ulm"}}}


@pytest.mark.parametrize(
    "message",
    [
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "assistant", "tool_calls": [{"function": {"name": "find", "arguments": '{"city": "Ulm"}'}}]},
        {"from": "function_call", "value": '{"name": "find", "arguments": {"city": "Ulm", "unit": null}}'},
    ],
)
def test_tool_calls_are_read_in_every_notation(message: dict[str, Any]) -> None:
    assert to_pair({**FORMS["plain"], "chosen": [message]}).chosen == Message("assistant", "", tool_calls=(CALL,))


@pytest.mark.parametrize("value", [{"enable_thinking": False, "date": None}, '{"enable_thinking": false}'])
def test_template_arguments_are_read_as_an_object_or_its_json(value: Any) -> None:
    row = {**FORMS["plain"], "chat_template_kwargs": value}
    expected = replace(to_pair(FORMS["plain"]), template_arguments={"enable_thinking": False})
    assert to_pair(row) == expected
    assert to_demonstration(row) == replace(expected, rejected=None)


NESTED: dict[str, Any] = reduce(lambda inner, _: {"a": inner}, range(900), {})


@pytest.mark.parametrize("value", [None, {}, "", "{}", "null", {"enable_thinking": None}])
def test_no_template_arguments_are_as_good_as_no_column(value: Any) -> None:
    assert to_pair({**FORMS["plain"], "chat_template_kwargs": value}) == to_pair(FORMS["plain"])


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"tools": "find"}, "tools is not a list of objects"),
        ({"tools": [{"name": "\ud800"}]}, "tools has half of a surrogate pair"),
        ({"chat_template_kwargs": "no"}, "chat_template_kwargs is not an object"),
        ({"chat_template_kwargs": [1]}, "chat_template_kwargs is not an object"),
        ({"chat_template_kwargs": False}, "chat_template_kwargs is not an object"),
        ({"chat_template_kwargs": "[]"}, "chat_template_kwargs is not an object"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs has 'messages'; it decides how"),
        ({"chat_template_kwargs": NESTED}, "it has tools or arguments that are nested more than 64 levels deep"),
        ({"chat_template_kwargs": json.dumps(NESTED)}, "it has tools or arguments that are nested more than 64 levels"),
        ({"tools": [NESTED]}, "it has tools or arguments that are nested more than 64 levels deep"),
        ({"chat_template_kwargs": {"tools": []}}, "chat_template_kwargs has 'tools'; put them into the column tools"),
        ({"chat_template_kwargs": {"tokenize": True}}, "chat_template_kwargs has 'tokenize'; it decides how"),
        ({"chat_template_kwargs": {"a": "\ud800"}}, "chat_template_kwargs has half of a surrogate pair"),
        ({"chosen": [{"role": "assistant", "tool_calls": "find"}]}, "tool_calls that are not a list"),
        (
            {"chosen": [{"role": "assistant", "tool_calls": [{"id": "1"}]}]},
            "a tool call without the name of a function",
        ),
    ],
)
def test_broken_tools_and_template_arguments_are_refused(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(UnusableRowError, match=reason):
        to_pair({**FORMS["plain"], **changes})


@pytest.mark.parametrize("column", ["prompt", "messages"])
def test_a_prompt_that_ends_with_the_answer_which_both_conversations_repeat_continues_with_their_next_turn(
    column: str,
) -> None:
    first, following = {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}
    answers = {
        name: [first, following, {"role": "assistant", "content": text}]
        for name, text in (("chosen", "d"), ("rejected", "e"))
    }
    pair = to_pair({column: [{"role": "user", "content": "a"}, first], **answers})
    assert [turn.content for turn in pair.prompt] == ["a", "b", "c"]
    assert (pair.chosen, pair.rejected) == (assistant("d"), assistant("e"))
