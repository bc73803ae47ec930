from __future__ import annotations

import json
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from merlina.data.conversation import Message, Pair, SkippedRow, assistant
from merlina.data.pairs import to_demonstration
from merlina.data.row_formats.conversion import RowConversion, conversion_of
from merlina.data.row_formats.registry import ROW_FORMATS
from merlina.schemas.datasets.config import AnswersNeeded, DatasetConfig, RowFormat

Rows = list[dict[str, Any]]
ASK, GOOD, BAD = "Name a river.", "The Rhine.", "A hill."
USER = Message("user", ASK)
PAIR = Pair((USER,), assistant(GOOD), assistant(BAD))
FIRST = (Message("user", "Hi"), assistant("Hello"))


def said(*texts: str) -> list[dict[str, str]]:
    """Return texts as messages of user and assistant in turn."""
    return [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(texts)]


def answer(text: str, role: str = "assistant") -> list[dict[str, str]]:
    return [{"role": role, "content": text}]


def shared(*texts: str, human: str = "human", model: str = "gpt") -> list[dict[str, str]]:
    """Return texts as turns of ShareGPT."""
    return [{"from": (human, model)[place % 2], "value": text} for place, text in enumerate(texts)]


def transcript(*texts: str) -> str:
    return "".join(f"\n\n{('Human', 'Assistant')[place % 2]}: {text}" for place, text in enumerate(texts))


def rated(key: str, *scores: Any) -> list[dict[str, Any]]:
    """Return an object for each answer, in the order good, bad, others."""
    texts = (GOOD, BAD, "Other.", "Another.")
    return [{"response": text, key: score} for text, score in zip(texts, scores, strict=False)]


def ranked(*ranks: Any) -> list[dict[str, Any]]:
    return [{"answer": item["response"], "rank": item["rank"]} for item in rated("rank", *ranks)]


def conversion(first: Rows, needs: AnswersNeeded = "both", **settings: Any) -> RowConversion:
    source = {"source_type": "local_file", "file_path": "rows.jsonl"}
    return conversion_of(DatasetConfig.model_validate({"source": source, **settings}), first, needs)


def read(
    rows: Rows, first: Rows | None = None, *, needs: AnswersNeeded = "both", **settings: Any
) -> list[Pair | SkippedRow]:
    return list(conversion(first or rows, needs, **settings).outcomes(rows))


# Each gives PAIR, in the format that is detected.
PAIRS: list[tuple[RowFormat, dict[str, Any]]] = [
    ("standard", {"prompt": ASK, "chosen": GOOD, "rejected": BAD}),
    ("standard", {"prompt": said(ASK), "chosen": answer(GOOD), "rejected": answer(BAD)}),
    ("standard", {"chosen": said(ASK, GOOD), "rejected": said(ASK, BAD)}),
    ("standard", {"messages": said(ASK), "chosen": GOOD, "rejected": BAD}),
    ("standard", {"messages": said(ASK, GOOD), "chosen": answer(GOOD), "rejected": answer(BAD)}),
    # UltraFeedback, binarized.
    (
        "standard",
        {
            "prompt": ASK,
            "prompt_id": "9f2",
            "chosen": said(ASK, GOOD),
            "rejected": said(ASK, BAD),
            "messages": said(ASK, GOOD),
            "score_chosen": 8.5,
            "score_rejected": 4.0,
        },
    ),
    ("sharegpt", {"conversations": shared(ASK), "chosen": shared("", GOOD)[1], "rejected": shared("", BAD)[1]}),
    ("sharegpt", {"conversations": shared(ASK, human="Human"), "chosen": GOOD, "rejected": BAD}),
    ("sharegpt", {"conversations": shared(ASK, human="USER"), "chosen": GOOD, "rejected": BAD}),
    ("sharegpt", {"conversation": shared(ASK, GOOD, model="ChatGPT"), "chosen": GOOD, "rejected": BAD}),
    ("sharegpt", {"chosen": shared(ASK, GOOD, model="bot"), "rejected": shared(ASK, BAD, model="MODEL")}),
    ("hh_rlhf", {"chosen": transcript(ASK, GOOD), "rejected": transcript(ASK, BAD)}),
    ("hh_rlhf", {"chosen": transcript(ASK, GOOD).lstrip(), "rejected": transcript(ASK, BAD).lstrip()}),
    ("hh_rlhf", {"prompt": transcript(ASK, ""), "chosen": f" {GOOD}", "rejected": f" {BAD}"}),
    ("alpaca", {"instruction": ASK, "chosen": GOOD, "rejected": BAD}),
    ("alpaca", {"instruction": ASK, "input": "", "output": [GOOD, BAD]}),
    ("alpaca", {"instruction": ASK, "input": None, "output": [GOOD, BAD], "history": [], "system": ""}),
    ("alpaca", {"instruction": "", "input": ASK, "chosen": GOOD, "rejected": BAD}),
    (
        "openai_preference",
        {
            "input": {"messages": said(ASK), "tools": [], "parallel_tool_calls": True},
            "preferred_output": answer(GOOD),
            "non_preferred_output": answer(BAD),
        },
    ),
    ("orca_dpo", {"system": "", "question": ASK, "chosen": GOOD, "rejected": BAD}),
    # Argilla's copy of the Orca pairs: `rationale` is the judge's, not a thought before the answer.
    (
        "orca_dpo",
        {
            "input": ASK,
            "chosen": GOOD,
            "rejected": BAD,
            "generations": [GOOD, BAD],
            "order": ["chosen", "rejected"],
            "rating": [9.0, 2.0],
            "rationale": "The first is a river.",
        },
    ),
    ("argilla", {"instruction": ASK, "chosen_response": GOOD, "rejected_response": BAD, "chosen_avg_rating": 4.5}),
    ("ultrafeedback", {"instruction": ASK, "completions": rated("fine-grained_score", 4.5, 1.25, 3.0)}),
    ("ultrafeedback", {"instruction": ASK, "completions": rated("overall_score", 8.0, 2.0), "models": ["a", "b"]}),
    ("rated_generations", {"instruction": ASK, "generations": [BAD, "Other.", GOOD], "ratings": [1, 3, 5]}),
    ("rated_generations", {"input": ASK, "generations": [GOOD, BAD], "rating": [9.0, 8.0], "order": ["a", "b"]}),
    ("rated_generations", {"prompt": ASK, "responses": [GOOD, BAD], "scores": ["4", "2"]}),
    ("nectar", {"prompt": transcript(ASK, ""), "answers": ranked(1, 7, 3)}),
    ("nectar", {"prompt": ASK, "answers": ranked(1.0, 2.0), "turns": 1, "num_responses": 2}),
    ("helpsteer_preference", {"prompt": ASK, "response_1": GOOD, "response_2": BAD, "preference_strength": -2}),
    ("helpsteer_preference", {"context": said(ASK), "response1": BAD, "response2": GOOD, "overall_preference": 1}),
    ("arena", {"conversation_a": said(ASK, GOOD), "conversation_b": said(ASK, BAD), "winner": "model_a"}),
    ("arena", {"prompt": ASK, "response_a": BAD, "response_b": GOOD, "winner": "model_b"}),
    ("arena", {"question": ASK, "answer_a": GOOD, "answer_b": BAD, "winner": "A"}),
    ("safe_rlhf", {"prompt": ASK, "response_0": BAD, "response_1": GOOD, "better_response_id": 1}),
    ("safe_rlhf", {"question": ASK, "response_0": GOOD, "response_1": BAD, "better_response_id": "0"}),
    ("stack_exchange", {"qid": 1, "question": ASK, "response_j": GOOD, "response_k": BAD}),
    ("shp", {"history": ASK, "human_ref_A": GOOD, "human_ref_B": BAD, "labels": 1, "score_A": 9}),
    ("shp", {"history": ASK, "human_ref_A": BAD, "human_ref_B": GOOD, "labels": 0}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "row"), PAIRS)
def test_every_format_is_detected_and_gives_the_same_pair(name: RowFormat, row: dict[str, Any]) -> None:
    found = conversion([row])
    assert (found.detected, found.row_format) == (name, name)
    assert list(found.outcomes([row])) == [PAIR]
    assert read([row], row_format=name) == [PAIR]


# Each gives the demonstration of PAIR's chosen answer for sft.
DEMONSTRATIONS: list[tuple[RowFormat, dict[str, Any]]] = [
    ("messages", {"messages": said(ASK, GOOD)}),
    ("messages", {"messages": said(ASK, GOOD), "source": "web"}),
    ("sharegpt", {"conversations": shared(ASK, GOOD)}),
    ("sharegpt", {"conversations": [{"from": "system", "value": ""}, *shared(ASK, GOOD, human="Human", model="GPT")]}),
    ("standard", {"prompt": ASK, "chosen": GOOD}),
    ("standard", {"chosen": said(ASK, GOOD)}),
    ("alpaca", {"instruction": ASK, "output": GOOD}),
    ("alpaca", {"instruction": ASK, "input": "", "output": GOOD, "text": "### Instruction"}),
    ("prompt_completion", {"prompt": ASK, "completion": GOOD}),
    ("prompt_completion", {"prompt": said(ASK), "completion": answer(GOOD)}),
    ("prompt_completion", {"prompt": ASK, "response": GOOD}),
    ("question_answer", {"question": ASK, "answer": GOOD}),
    ("question_answer", {"query": ASK, "response": GOOD}),
    ("question_answer", {"input": ASK, "output": GOOD}),
    ("unpaired", {"prompt": ASK, "completion": GOOD, "label": True}),
    ("unpaired", {"prompt": said(ASK), "completion": answer(GOOD), "label": "true"}),
    ("unpaired", {"instruction": ASK, "input": "", "output": GOOD, "kto_tag": True}),
    ("unpaired", {"messages": said(ASK, GOOD), "label": 1}),
    ("unpaired", {"conversations": shared(ASK, GOOD), "kto_tag": "true"}),
    ("unpaired", {"messages": said(ASK), "completion": GOOD, "label": True}),
    ("unpaired", {"question": ASK, "response": GOOD, "feedback": "👍"}),
    ("unpaired", {"prompt": ASK, "response": GOOD, "thumbs": "up"}),
    *((name, row) for name, row in PAIRS if name not in ("standard", "sharegpt")),
]


@pytest.mark.parametrize(("name", "row"), DEMONSTRATIONS)
def test_sft_trains_on_the_good_answer_of_every_format(name: RowFormat, row: dict[str, Any]) -> None:
    assert conversion([row], "chosen").detected == name
    assert read([row], needs="chosen") == [Pair((USER,), assistant(GOOD), None)]


def test_every_format_is_registered_and_has_an_example() -> None:
    assert set(ROW_FORMATS) == set(get_args(RowFormat))
    assert set(ROW_FORMATS) == {name for name, _ in [*PAIRS, *DEMONSTRATIONS]} | {"helpsteer"}
    assert len({converter.title for converter in ROW_FORMATS.values()}) == len(ROW_FORMATS)


def example(name: RowFormat) -> dict[str, Any]:
    return next(row for each, row in PAIRS if each == name)


HELPSTEER = {"prompt": ASK, "response": GOOD, "helpfulness": 4}
WITHOUT = object()

# The format's first example with these changes, and the exact reason.
BROKEN: list[tuple[RowFormat, dict[str, Any], str]] = [
    ("standard", {"chosen": None}, "chosen is empty"),
    ("standard", {"rejected": 3}, "rejected has the type int (3), not text or messages"),
    ("sharegpt", {"conversations": []}, "prompt is missing (columns here: conversations, chosen, rejected); "
     "column_mapping can map another column to it"),
    ("sharegpt", {"rejected": WITHOUT}, "there is one answer and none that is rejected (ShareGPT conversations); "
     "training_mode sft needs none"),
    ("sharegpt", {"chosen": {"from": "narrator", "value": "x"}}, "chosen has a message with the role 'narrator'; "
     "supported are system, developer, user, human, assistant, gpt, chatgpt, model, bot, "
     "ai, tool, function, observation, function_call"),
    ("hh_rlhf", {"chosen": WITHOUT}, "chosen is missing (columns here: rejected)"),
    ("hh_rlhf", {"rejected": None}, "rejected is empty"),
    ("hh_rlhf", {"rejected": 7}, "rejected has the type int, not the text of a transcript"),
    ("hh_rlhf", {"chosen": "The Rhine."},
     "chosen is not a transcript: it must begin with 'Human:', each turn after a blank line"),
    ("hh_rlhf", {"chosen": transcript(ASK)}, "chosen ends with a user turn, not with an assistant turn"),
    ("hh_rlhf", {"chosen": transcript(ASK, "A", " ", GOOD), "rejected": transcript(ASK, "X", "B", BAD)},
     "a turn of chosen is empty"),
    ("alpaca", {"instruction": WITHOUT}, "instruction is missing (columns here: chosen, rejected)"),
    ("alpaca", {"instruction": ""}, "prompt is empty"),
    ("alpaca", {"instruction": 5}, "instruction has the type int, not text"),
    ("alpaca", {"input": ["x"]}, "input has the type list, not text"),
    ("alpaca", {"history": "Hi"}, "history is not a list of [question, answer]"),
    ("alpaca", {"chosen": WITHOUT, "rejected": WITHOUT, "output": [GOOD]},
     "output has 1 answers; it needs two, the chosen and the rejected one"),
    ("alpaca", {"chosen": WITHOUT, "rejected": WITHOUT, "output": GOOD},
     "there is one answer and none that is rejected (Alpaca); training_mode sft needs none"),
    ("openai_preference", {"input": WITHOUT},
     "input is missing (columns here: preferred_output, non_preferred_output)"),
    ("openai_preference", {"input": {"tools": []}},
     "input has no messages; it must be an object with the key messages"),
    ("openai_preference", {"input": {"messages": []}}, "prompt is empty"),
    ("openai_preference", {"preferred_output": None}, "chosen is empty"),
    ("openai_preference", {"non_preferred_output": WITHOUT},
     "there is one answer and none that is rejected (OpenAI preference); training_mode sft needs none"),
    ("orca_dpo", {"question": None}, "prompt is empty"),
    ("orca_dpo", {"question": WITHOUT}, "question or input is missing (columns here: system, chosen, rejected)"),
    ("orca_dpo", {"system": 3}, "system has the type int (3), not text"),
    ("argilla", {"chosen_response": ""}, "chosen is empty"),
    ("argilla", {"rejected_response": WITHOUT},
     "rejected_response is missing (columns here: instruction, chosen_response, chosen_avg_rating)"),
    ("ultrafeedback", {"completions": None}, "completions is empty"),
    ("ultrafeedback", {"completions": []}, "there is no answer to this prompt"),
    ("ultrafeedback", {"completions": "x"}, "completions has the type str, not a list"),
    ("ultrafeedback", {"completions": ["x"]}, "completions contains strs instead of objects with an answer"),
    ("ultrafeedback", {"completions": [{"overall_score": 3}]}, "answer 1 of completions has no text; one of the keys "
     "response, answer, text, content, completion, output is needed"),
    ("ultrafeedback", {"completions": rated("overall_score", 4, None)},
     "answer 2 has no number as its overall_score (null)"),
    ("ultrafeedback", {"completions": rated("overall_score", 4, 4.0)},
     "the 2 answers are tied, so that none of them is preferred"),
    ("ultrafeedback", {"completions": rated("overall_score", 4)},
     "there is one answer to this prompt; a pair needs two with different scores"),
    ("ultrafeedback", {"instruction": WITHOUT},
     "prompt or instruction or question or input is missing (columns here: completions)"),
    ("rated_generations", {"ratings": [1, 2]}, "ratings has 2 numbers for 3 answers; each answer needs one"),
    ("rated_generations", {"ratings": [1, None, 2]}, "answer 2 has no number as its ratings (null)"),
    ("rated_generations", {"ratings": WITHOUT},
     "ratings or rating or scores is missing (columns here: instruction, generations)"),
    ("rated_generations", {"generations": [GOOD, 3, ""], "ratings": [3, 1, 2]},
     "rejected has the type int (3), not text or messages"),
    ("nectar", {"answers": ranked(1, "first")}, "answer 2 has no number as its rank ('first')"),
    ("nectar", {"answers": ranked(2, 2)}, "the 2 answers are tied, so that none of them is preferred"),
    ("nectar", {"answers": [{"rank": 1, "answer": None}, {"rank": 2, "answer": "x"}]}, "chosen is empty"),
    ("nectar", {"prompt": None}, "prompt is empty"),
    ("helpsteer_preference", {"preference_strength": 0}, "preference_strength is 0: the answers are tied"),
    ("helpsteer_preference", {"preference_strength": None},
     "preference_strength is null, not a number from -3 (first answer) to 3 (second answer)"),
    ("helpsteer_preference", {"response_2": WITHOUT},
     "response_2 or response2 is missing (columns here: prompt, response_1, preference_strength)"),
    ("arena", {"winner": "tie"}, "winner is 'tie': the answers are tied"),
    ("arena", {"winner": "tie (bothbad)"}, "winner is 'tie (bothbad)': the answers are tied"),
    ("arena", {"winner": "model_c"}, "winner is 'model_c'; model_a, model_b and tie are understood"),
    ("arena", {"winner": None}, "winner is null; model_a, model_b and tie are understood"),
    ("arena", {"conversation_b": []}, "rejected is empty"),
    ("safe_rlhf", {"better_response_id": 2},
     "better_response_id is 2; 0 (the first answer) and 1 (the second) are understood"),
    ("safe_rlhf", {"response_0": None}, "rejected is empty"),
    ("stack_exchange", {"response_k": WITHOUT}, "response_k is missing (columns here: qid, question, response_j)"),
    ("stack_exchange", {"question": ""}, "prompt is empty"),
    ("shp", {"labels": "A"}, "labels is 'A'; 1 (answer A) and 0 (answer B) are understood"),
    ("shp", {"history": 1}, "prompt has the type int (1), not text or messages"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "changes", "reason"), BROKEN)
def test_a_broken_row_is_skipped_with_its_number_and_a_reason(
    name: RowFormat, changes: dict[str, Any], reason: str
) -> None:
    good = example(name)
    broken = {key: value for key, value in {**good, **changes}.items() if value is not WITHOUT}
    outcomes = read([good, broken, good], [good])
    assert [outcomes[0], outcomes[2]] == [PAIR, PAIR]
    skipped = outcomes[1]
    assert isinstance(skipped, SkippedRow)
    assert (skipped.number, skipped.reason, skipped.rows) == (2, reason, 1)


UNPAIRED = {"prompt": ASK, "completion": GOOD, "label": True}


@pytest.mark.parametrize(
    ("row", "needs", "reason"),
    [
        (UNPAIRED, "both", "the row is unpaired: it has one answer with a label, and training needs a chosen and a "
         "rejected one; training_mode kto uses unpaired answers, and sft those with a true label"),
        ({**UNPAIRED, "label": False}, "chosen",
         "the label of the answer is false, and sft trains on good answers only"),
        ({**UNPAIRED, "label": None}, "chosen", "label is null; true (a good answer) or false is needed"),
        ({**UNPAIRED, "label": 0.5}, "chosen", "label is 0.5; true (a good answer) or false is needed"),
        ({**UNPAIRED, "completion": ""}, "chosen", "chosen is empty"),
        ({"completion": GOOD, "label": 1}, "chosen",
         "prompt or question or query or input or conversations or conversation or messages is missing "
         "(columns here: completion, label)"),
        ({"prompt": ASK, "label": 1}, "chosen",
         "completion or response or answer or output is missing (columns here: prompt, label)"),
        ({"prompt": ASK, "completion": GOOD}, "chosen", "label or kto_tag or feedback or thumbs_up or thumbs or thumb "
         "is missing (columns here: prompt, completion)"),
    ],
)  # fmt: skip
def test_an_unpaired_row_is_used_for_sft_only_if_its_answer_is_good(
    row: dict[str, Any], needs: AnswersNeeded, reason: str
) -> None:
    (skipped,) = read([row], [UNPAIRED], needs=needs)
    assert isinstance(skipped, SkippedRow)
    assert skipped.reason == reason


def test_kto_uses_unpaired_rows_with_either_label() -> None:
    rows = [UNPAIRED, {**UNPAIRED, "label": False}, {**UNPAIRED, "label": None}, {"prompt": ASK, "completion": ""}]
    good, bad, *skipped = read(rows, needs="any")
    assert (good, bad) == (Pair((USER,), assistant(GOOD), None), Pair((USER,), None, assistant(GOOD)))
    assert [type(row) for row in skipped] == [SkippedRow, SkippedRow]


def test_kto_uses_the_same_pairs_as_other_methods() -> None:
    for _, row in PAIRS:
        assert read([row], needs="any") == read([row])


def test_any_columns_can_be_mapped_to_an_answer_and_its_label() -> None:
    mapping = {"asked": "prompt", "reply": "completion", "is_good": "label"}
    for label in (True, False):
        (pair,) = read([{"asked": ASK, "reply": GOOD, "is_good": label}], needs="any", column_mapping=mapping)
        assert isinstance(pair, Pair)
        assert (pair.chosen, pair.rejected) == ((assistant(GOOD), None) if label else (None, assistant(GOOD)))


@pytest.mark.parametrize("value", [False, 0, -1, "0", "False", "bad", "thumbs_down", "👎", "undesirable"])
def test_the_converted_row_of_an_unpaired_one_has_its_label(value: Any) -> None:
    convert = ROW_FORMATS["unpaired"].convert
    for label, expected in ((True, True), (value, False)):
        row = convert({**UNPAIRED, "label": label, "tools": "[]"})
        assert isinstance(row, dict)
        assert (row["label"], row["tools"]) == (expected, "[]")
        assert to_demonstration(row) == Pair((USER,), assistant(GOOD), None)


@pytest.mark.parametrize("name", ["messages", "prompt_completion", "question_answer"])
def test_demonstrations_are_refused_where_pairs_are_needed(name: RowFormat) -> None:
    row = next(row for each, row in DEMONSTRATIONS if each == name)
    (skipped,) = read([row])
    assert isinstance(skipped, SkippedRow)
    assert skipped.reason.startswith("there is one answer and none that is rejected")


def test_earlier_turns_of_every_format_with_turns_are_kept() -> None:
    rows: Rows = [
        {"chosen": transcript("Hi", "Hello", ASK, GOOD), "rejected": transcript("Hi", "Hello", ASK, BAD)},
        {"prompt": transcript("Hi", "Hello", ASK, ""), "answers": ranked(1, 2)},
        {"instruction": ASK, "output": [GOOD, BAD], "history": [["Hi", "Hello"]]},
        {"conversations": shared("Hi", "Hello", ASK), "chosen": GOOD, "rejected": BAD},
        {
            "prompt": f"Hi\n<extra_id_1>Assistant\nHello\n<extra_id_1>User\n{ASK}",
            "response_1": GOOD,
            "response_2": BAD,
            "preference_strength": -1,
        },
    ]
    for row in rows:
        assert read([row]) == [Pair((*FIRST, USER), assistant(GOOD), assistant(BAD))]


def test_instruction_and_input_form_the_prompt() -> None:
    row = {
        "instruction": "Translate.",
        "input": "The cat.",
        "chosen": "Le chat.",
        "rejected": "El gato.",
        "system": "S",
    }
    expected = (Message("system", "S"), Message("user", "Translate.\nThe cat."))
    assert read([row]) == [Pair(expected, assistant("Le chat."), assistant("El gato."))]


def test_all_pairs_of_a_row_keep_its_number_and_ties_give_none() -> None:
    rows = [{"prompt": ASK, "answers": ranked(1, 4, 2, 2)}] * 2
    pairs = read(rows, pairs_per_row="all")
    assert all(isinstance(pair, Pair) for pair in pairs)
    found = [
        (pair.number, pair.rows, pair.chosen.content, pair.rejected.content)
        for pair in pairs
        if isinstance(pair, Pair) and pair.rejected
    ]
    best = [(GOOD, "Other."), (GOOD, "Another."), (GOOD, BAD), ("Other.", BAD), ("Another.", BAD)]
    assert found == [(number, int(place == 0), *texts) for number in (1, 2) for place, texts in enumerate(best)]


def test_all_pairs_of_very_many_answers_are_refused() -> None:
    row = {"prompt": ASK, "answers": [{"answer": str(number), "rank": number} for number in range(65)]}
    (skipped,) = read([row], pairs_per_row="all")
    assert isinstance(skipped, SkippedRow)
    assert skipped.reason.startswith("there are 65 answers, and pairs_per_row all takes at most 64")
    assert len(read([row])) == 1


def test_adjacent_rows_of_helpsteer_with_the_same_prompt_give_one_pair() -> None:
    worse = {**HELPSTEER, "response": BAD, "helpfulness": "1"}
    other = {**HELPSTEER, "prompt": "Another question"}
    broken = {**HELPSTEER, "helpfulness": None}
    outcomes = read([HELPSTEER, worse, broken, other, {**other, "response": "x"}], [HELPSTEER])
    assert conversion([HELPSTEER]).detected == "helpsteer"
    assert [(row.number, row.rows) for row in outcomes] == [(3, 1), (1, 2), (4, 2)]
    assert outcomes[1] == PAIR
    assert [row.reason for row in outcomes if isinstance(row, SkippedRow)] == [
        "helpfulness is null, not a number",
        "the 2 answers are tied, so that none of them is preferred",
    ]
    assert read([*[example("standard")] * 2, HELPSTEER, worse], [HELPSTEER]) == [PAIR] * 3
    assert read([worse, HELPSTEER], needs="chosen") == [Pair((USER,), assistant(GOOD), None)]


def test_the_format_is_that_of_most_rows_and_other_standard_rows_are_used() -> None:
    alpaca, standard = example("alpaca"), example("standard")
    found = conversion([{"x": 1}, standard, alpaca, alpaca])
    assert found.detected == "alpaca"
    outcomes = list(found.outcomes([alpaca, standard, {"x": 1}]))
    assert outcomes[:2] == [PAIR, PAIR]
    assert isinstance(outcomes[2], SkippedRow)


def test_standard_rows_among_unpaired_ones_are_used() -> None:
    standard = example("standard")
    assert read([standard, {**standard, "label": False}], [UNPAIRED]) == [PAIR, PAIR]
    assert read([standard], [UNPAIRED], needs="chosen") == [Pair((USER,), assistant(GOOD), None)]


def test_unknown_rows_are_read_as_standard_ones() -> None:
    found = conversion([{"question": ASK, "good": GOOD, "bad": BAD}])
    assert (found.detected, found.row_format) == (None, "standard")


def test_row_format_overrides_the_detection() -> None:
    row = {"prompt": transcript(ASK, ""), "chosen": GOOD, "rejected": BAD}
    found = conversion([row], row_format="standard")
    assert (found.detected, found.row_format) == ("hh_rlhf", "standard")
    assert list(found.outcomes([row])) == [Pair((Message("user", row["prompt"]),), assistant(GOOD), assistant(BAD))]
    (skipped,) = read([example("standard")], row_format="nectar")
    assert isinstance(skipped, SkippedRow)
    assert skipped.reason == "answers is missing (columns here: prompt, chosen, rejected)"


def test_rows_that_a_mapping_would_pair_are_not_those_of_a_format_with_one_answer() -> None:
    row = {"prompt": ASK, "answer": "Both.", "better": GOOD, "worse": BAD}
    assert conversion([row]).detected is None
    (skipped,) = read([row])
    assert isinstance(skipped, SkippedRow)
    assert 'column_mapping {"better": "chosen"} would map it' in skipped.reason
    assert read([row], column_mapping={"better": "chosen", "worse": "rejected"}) == [PAIR]


def test_a_column_mapping_is_applied_before_the_detection() -> None:
    row = {"q": ASK, "chosen": GOOD, "rejected": BAD}
    assert conversion([row], column_mapping={"q": "prompt"}).detected == "standard"
    assert read([row], column_mapping={"q": "prompt"}) == [PAIR]


MESSAGES = said(ASK, GOOD)


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(MESSAGES),
        json.dumps(MESSAGES, indent=1),
        str(MESSAGES),
        str(MESSAGES).replace("}, {", "}\n {"),
        str([{"content": message["content"], "role": message["role"]} for message in MESSAGES]),
        str(shared(ASK, GOOD)),
    ],
)
def test_messages_in_text_are_parsed_and_remarked(text: str) -> None:
    (pair,) = read([{"chosen": text, "rejected": text.replace(GOOD, BAD)}])
    assert pair == PAIR
    assert isinstance(pair, Pair)
    assert pair.finding_kinds == {"parsed_from_text"}


@pytest.mark.parametrize("name", ["nectar", "rated_generations", "ultrafeedback", "openai_preference"])
def test_lists_and_objects_in_text_are_parsed(name: RowFormat) -> None:
    row = {key: value if isinstance(value, str) else json.dumps(value) for key, value in example(name).items()}
    assert conversion([row]).detected == name
    assert read([row]) == [PAIR]


@pytest.mark.parametrize("text", ["[1, 2]", "{}", '{"a": 1}', "[x]", "[INST] Hi", '["a", "b"]', '{"role"}', "{'a': 1}"])
def test_other_text_that_begins_like_a_list_or_an_object_is_text(text: str) -> None:
    row = {"prompt": text, "chosen": text, "rejected": BAD}
    assert read([row]) == [Pair((Message("user", text),), assistant(text), assistant(BAD))]
    (pair,) = read([row])
    assert isinstance(pair, Pair)
    assert not pair.finding_kinds


UNPARSABLE = [
    "[{'role': 'user', 'content': 'cut",
    "[{'role': 'user', 'content': open('x')}]",
    "[{'role': " + "[" * 5000,
    '[{"role": "user", "content": "x"}, 3]',
    "[{'role': 'user', 'content': '" + "x" * 1_000_000 + "'}]",
]


@pytest.mark.parametrize("text", [*UNPARSABLE, json.dumps(MESSAGES)])
def test_messages_in_text_that_nothing_reads_do_not_matter(text: str) -> None:
    (pair,) = read([{**example("standard"), "log": text}])
    assert pair == PAIR
    assert isinstance(pair, Pair)
    assert not pair.finding_kinds


@pytest.mark.parametrize("text", UNPARSABLE)
def test_messages_in_text_that_cannot_be_parsed_are_refused(text: str) -> None:
    (skipped,) = read([{"prompt": text, "chosen": GOOD, "rejected": BAD}], [example("standard")])
    assert isinstance(skipped, SkippedRow)
    assert skipped.reason == (
        "prompt begins like messages in a text, but is neither JSON nor a Python value of messages; write it as JSON"
    )


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_the_thought_of_a_message_is_kept_beside_its_content(key: str) -> None:
    def thought(text: str, reason: Any) -> list[dict[str, Any]]:
        return [{"role": "assistant", key: reason, "content": text}]

    row = {"prompt": said(ASK), "chosen": thought(GOOD, "long"), "rejected": thought(BAD, None), "reasoning": "column"}
    assert read([row]) == [Pair((USER,), Message("assistant", GOOD, "long"), Message("assistant", BAD, "column"))]
    (skipped,) = read([{**row, "chosen": thought(GOOD, ["x"])}])
    assert isinstance(skipped, SkippedRow)
    assert skipped.reason == f"chosen has a message with a {key} that is not text"


def test_an_empty_system_message_is_omitted() -> None:
    empty = {"role": "system", "content": " "}
    row = {"chosen": [empty, *said(ASK, GOOD)], "rejected": [empty, *said(ASK, BAD)]}
    assert read([row]) == [PAIR]
    assert read([{**row, "system": "S"}]) == [Pair((Message("system", "S"), USER), PAIR.chosen, PAIR.rejected)]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"images": ["a.png"]}, "images contains an image, audio or video"),
        ({"audio": {"bytes": "", "path": "a.wav"}}, "audio contains an image, audio or video"),
        ({"photo": {"bytes": None, "path": "a.png"}}, "photo contains an image, audio or video"),
        *(
            ({"prompt": [{"role": "user", "content": [{"type": kind}, {"type": "text", "text": ASK}]}]},
             f"prompt has a message with a part of the type {kind}, and training is on text only")
            for kind in ("image_url", "image", "input_audio", "video")
        ),
    ],
)  # fmt: skip
def test_images_and_audio_are_refused_by_name(changes: dict[str, Any], reason: str) -> None:
    (skipped,) = read([{**example("standard"), **changes}])
    assert isinstance(skipped, SkippedRow)
    assert skipped.reason.startswith(reason)
    assert "remove such rows" in skipped.reason


def test_empty_columns_of_images_do_not_matter() -> None:
    assert read([{**example("standard"), "images": [], "audio": None}]) == [PAIR]


def test_columns_of_sentences_that_nothing_uses_are_named() -> None:
    row = {
        **example("orca_dpo"),
        "notes": "Checked by two of us.",
        "id": "row 7 of 9",
        "model": "gpt-4",
        "date": "2024-01-01 10:00",
        "tools": "a b c",
        "text": "日本の川の名前を一つ教えてください",
        "score": 3,
        "tags": ["a b c"],
        "copy": ASK,
    }
    assert conversion([row, example("orca_dpo")]).unused_columns == ("notes", "text")
    assert conversion([example("standard")], column_mapping={"prompt": "system"}).unused_columns == ()


def test_columns_that_appear_in_later_rows_are_named_once_they_are_read() -> None:
    row, standard = example("orca_dpo"), example("standard")
    later: Rows = [
        {**row, "notes": "Checked by two of us.", "id": "7"},
        {**row, "notes": "7", "id": "Row 7 of nine rows", "comment": "9"},
        {**standard, "critique": "Both are too short."},
    ]
    made = conversion([row])
    assert made.unused_columns == ()
    list(made.outcomes([row, *later]))
    assert made.unused_columns == ("notes", "id", "critique")


def test_a_column_is_judged_by_the_first_twenty_rows_that_fill_it() -> None:
    row = example("standard")
    made = conversion([row])
    notes = [None] * 30 + ["7"] * 10 + ["Checked by two of us."] * 9
    rows: Rows = [{**row, "notes": note} for note in notes]
    list(made.outcomes([row, *rows]))
    assert made.unused_columns == ()
    list(made.outcomes([{**row, "notes": note} for note in ("This one, too.", "7", "7", "7")], start=51))
    assert made.unused_columns == ("notes",)


def test_only_the_first_thousand_columns_are_examined() -> None:
    row = example("standard")
    made = conversion([row])
    rows: Rows = [{**row, f"note {number}": str(number)} for number in range(999)]
    list(made.outcomes([row, *rows]))
    for name in ("a", "b"):
        list(made.outcomes([{**row, name: "Checked by two of us."}], start=1001))
    assert made.unused_columns == ("a",)


@pytest.mark.parametrize("row", [row for _, row in (*PAIRS, *DEMONSTRATIONS)])
def test_template_arguments_are_passed_on(row: dict[str, Any]) -> None:
    arguments = {"enable_thinking": False}
    (pair,) = read([{**row, "chat_template_kwargs": arguments}], needs="chosen")
    assert isinstance(pair, Pair)
    assert pair.template_arguments == arguments


def test_tools_are_passed_on() -> None:
    tools = [{"type": "function"}]
    convert = ROW_FORMATS["openai_preference"].convert
    row = convert({"input": {"messages": said(ASK), "tools": tools}, "preferred_output": answer(GOOD)})
    assert isinstance(row, dict)
    assert row["tools"] == tools


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5) | st.sampled_from(
        ["role", "content", "from", "value", "messages", "rank", "answer", "score", "response", "type", "bytes", "path"]
    ), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip
NAMES = sorted(set().union(*(converter.columns for converter in ROW_FORMATS.values())))


@given(
    row=st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=5), json_values, max_size=8),
    name=st.none() | st.sampled_from(get_args(RowFormat)),
    needs=st.sampled_from(get_args(AnswersNeeded)),
    pairs_per_row=st.sampled_from(["best_worst", "all"]),
)
def test_any_json_values_give_pairs_or_a_reason(
    row: dict[str, Any], name: str | None, needs: AnswersNeeded, pairs_per_row: str
) -> None:
    outcomes = read([row], row_format=name, needs=needs, pairs_per_row=pairs_per_row)
    assert outcomes
    assert sum(outcome.rows for outcome in outcomes) == 1
    assert all(outcome.reason for outcome in outcomes if isinstance(outcome, SkippedRow))


content = st.text(alphabet=st.characters(exclude_categories=["Cs"]), min_size=1).filter(
    lambda text: text.strip() == text and text[:1] not in "[{" and "Human:" not in text and "Assistant:" not in text
)


@given(ask=content, good=content, bad=content)
def test_content_is_neither_lost_nor_changed(ask: str, good: str, bad: str) -> None:
    rows: Rows = [
        {"chosen": transcript("Hi", "Hello", ask, good), "rejected": transcript("Hi", "Hello", ask, bad)},
        {"instruction": ask, "output": [good, bad], "history": [["Hi", "Hello"]]},
        {"input": {"messages": said("Hi", "Hello", ask)}, "preferred_output": good, "non_preferred_output": bad},
        {
            "conversation_a": said("Hi", "Hello", ask, good),
            "conversation_b": said("Hi", "Hello", ask, bad),
            "winner": "a",
        },
        {
            "prompt": transcript("Hi", "Hello", ask, ""),
            "answers": [{"answer": good, "rank": 1}, {"answer": bad, "rank": 2}],
        },
        {"messages": json.dumps(said("Hi", "Hello", ask)), "chosen": str(answer(good)), "rejected": str(answer(bad))},
    ]
    if good == bad:
        return
    for row in rows:
        assert read([row]) == [Pair((*FIRST, Message("user", ask)), assistant(good), assistant(bad))]


# The first format cannot be read as the second by itself.
CHANGES: list[tuple[RowFormat, RowFormat, AnswersNeeded]] = [
    ("standard", "sharegpt", "both"),
    ("standard", "unpaired", "any"),
    ("standard", "hh_rlhf", "both"),
    ("standard", "arena", "both"),
    ("standard", "prompt_completion", "chosen"),
    ("alpaca", "openai_preference", "both"),
    ("hh_rlhf", "alpaca", "both"),
    ("ultrafeedback", "nectar", "both"),
    ("unpaired", "alpaca", "any"),
    # Unless these rows are refused, sft trains on their answers, including those labeled false.
    ("prompt_completion", "unpaired", "chosen"),
    ("question_answer", "unpaired", "chosen"),
    ("messages", "unpaired", "chosen"),
]


@pytest.mark.parametrize(("first", "later", "needs"), CHANGES)
def test_rows_whose_format_changes_later_are_refused_with_what_to_do(
    first: RowFormat, later: RowFormat, needs: AnswersNeeded
) -> None:
    def rows(name: RowFormat, count: int) -> Rows:
        # Rows of ShareGPT that are pairs are standard rows, too.
        special = [("standard", example("standard")), ("sharegpt", {"conversations": shared(ASK, GOOD)})]
        known = [*special, *(PAIRS if needs == "both" else DEMONSTRATIONS)]
        return [next(row for each, row in known if each == name)] * count

    found = read([*rows(first, 30), *rows(later, 2), *rows(first, 1)], rows(first, 20), needs=needs)
    assert [row.number for row in found if isinstance(row, SkippedRow)] == [31, 32]
    assert [row.number for row in found if isinstance(row, Pair)] == [*range(1, 31), 33]
    reasons = {row.reason for row in found if isinstance(row, SkippedRow)}
    assert reasons == {
        f"it has the format {later}, but the data set is read as {first}, as its first rows are; put the rows of each "
        "format into a file of its own and list the files in sources, or set row_format to "
        f"{later} if most rows have it"
    }


@pytest.mark.parametrize("first", [example("sharegpt"), example("alpaca"), UNPAIRED])
def test_standard_rows_are_read_after_rows_of_another_format(first: dict[str, Any]) -> None:
    *_, last = read([first] * 20 + [example("standard")], needs="any")
    assert isinstance(last, Pair)
    assert last.rejected is not None
