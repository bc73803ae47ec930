from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from merlina.data.conversation import Message, Pair, SkippedRow, UnusableRowError, assistant
from merlina.data.findings.label_balance import LabelWeights, label_imbalance
from merlina.data.findings.row_examiner import Lengths, RowExaminer
from merlina.data.pairs import to_pair
from merlina.data.split import held_out_rows
from merlina.schemas.datasets.responses import DataFinding


def examine(rows: list[dict[str, Any]], test_size: float = 0.0, **examiner: Any) -> dict[str, DataFinding]:
    """Return the findings on rows, by kind."""
    seen, pairs = RowExaminer(**examiner), []
    for number, row in enumerate(rows, start=1):
        try:
            pairs.append(replace(to_pair(row), number=number))
        except UnusableRowError as error:
            seen.add_skipped(SkippedRow(number, error.message, error.kind))
        else:
            seen.add_pair(pairs[-1])
    held_out = held_out_rows((pair.number for pair in pairs), test_size, 42)
    return {finding.kind: finding for finding in seen.findings(held_out)}


def pair(prompt: str, chosen: str = "yes", rejected: str = "no!") -> dict[str, Any]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def test_healthy_data_has_no_findings() -> None:
    assert examine([pair(f"Question {number}?") for number in range(40)], test_size=0.2) == {}


def test_identical_answers_are_counted_with_their_rows() -> None:
    found = examine([pair("a"), pair("b", "same", "same "), pair("c", "same", "same")])
    assert set(found) == {"identical_answers"}
    assert (found["identical_answers"].count, found["identical_answers"].rows) == (2, [2, 3])
    assert "2 of 3 rows have the same text" in found["identical_answers"].message


def test_rows_without_a_prompt_or_an_answer_are_reported() -> None:
    found = examine([pair("a"), pair(""), pair("c", chosen=" "), {"prompt": "d", "chosen": 3, "rejected": "x"}])
    assert (found["empty_side"].count, found["empty_side"].rows) == (2, [2, 3])
    assert "row 2: prompt is empty" in found["empty_side"].message
    assert (found["unusable"].count, found["unusable"].rows) == (1, [4])


def test_each_finding_quotes_the_reasons_of_its_own_kind_only() -> None:
    found = examine([{"prompt": "d", "chosen": 3, "rejected": "x"}] * 9 + [pair("a"), pair("")])
    assert found["empty_side"].message.endswith("cannot be used: row 11: prompt is empty")
    assert "prompt is empty" not in found["unusable"].message
    assert "row 5: chosen has the type int" in found["unusable"].message


def test_repeated_rows_are_counted_after_the_first() -> None:
    found = examine([pair("a"), pair("a"), pair("a", chosen="other"), pair(" a ")])
    assert (found["duplicates"].count, found["duplicates"].rows) == (2, [2, 4])


def test_a_prompt_in_both_parts_of_the_split_is_a_leak() -> None:
    rows = [pair("Always the same?", chosen=f"answer {number}") for number in range(20)]
    leak = examine(rows, test_size=0.2)["evaluation_leak"]
    assert leak.count == 4
    assert "evaluation_leak" not in examine(rows, test_size=0)


def test_answers_to_different_prompts_are_reported() -> None:
    def said(*texts: str) -> list[dict[str, str]]:
        roles = ["user", "assistant"] * len(texts)
        return [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]

    found = examine([{"chosen": said("Why?", "So."), "rejected": said("What?", "No.")}])
    assert (found["differing_prompts"].count, found["differing_prompts"].rows) == (1, [1])


@pytest.mark.parametrize(("chosen", "rejected"), [("long " * 40, "short"), ("short", "long " * 40)])
def test_length_bias_is_reported_with_numbers(chosen: str, rejected: str) -> None:
    found = examine([pair(f"q{number}", chosen, rejected) for number in range(30)])
    side = "longer" if len(chosen) > len(rejected) else "shorter"
    assert f"the chosen answer is the {side} one in 100% of the pairs" in found["length_bias"].message
    assert found["length_bias"].count == 30
    assert examine([pair(f"q{number}", chosen, rejected) for number in range(5)]) == {}


@pytest.mark.parametrize(
    "answers",
    [[("x" * 10, "x" * 5)] * 17 + [("x" * 10, "x" * 1000)] * 3, [("same", "size")] * 18 + [("x" * 900, "y")] * 2],
)
def test_length_bias_in_few_rows_is_not_a_finding(answers: list[tuple[str, str]]) -> None:
    examiner = RowExaminer()
    for number, (chosen, rejected) in enumerate(answers, start=1):
        examiner.add_pair(Pair((Message("user", f"q{number}"),), assistant(chosen), assistant(rejected), number=number))
    assert "length_bias" not in [finding.kind for finding in examiner.findings([])]


def labeled(good: int, bad: int) -> RowExaminer:
    examiner = RowExaminer()
    for number in range(good + bad):
        prompt, answer = (Message("user", f"q{number}"),), assistant("a")
        sides = (answer, None) if number < good else (None, answer)
        lengths = Lengths(prompt=3, chosen=2 * (number < good), rejected=4 * (number >= good))
        examiner.add_pair(Pair(prompt, *sides, number=number + 1), lengths)
    return examiner


UNEVEN = "{} answers are labeled true and {} false, and with desirable_weight {} and undesirable_weight {} one label "
UNEVEN += "outweighs the other: "
SET = "set {} to a value between {} and {}"


@pytest.mark.parametrize(
    ("good", "bad", "weights", "message"),
    [
        (90, 10, (1, 1), UNEVEN.format(90, 10, 1, 1) + SET.format("undesirable_weight", 6, 9)),
        (10, 90, (1, 1), UNEVEN.format(10, 90, 1, 1) + SET.format("desirable_weight", 9, 14)),
        (90, 10, (2, 1), UNEVEN.format(90, 10, 2, 1) + SET.format("undesirable_weight", 12, 18)),
        (50, 50, (1, 4), UNEVEN.format(50, 50, 1, 4) + SET.format("desirable_weight", 4, 6)),
        (1200, 1, (1, 1), UNEVEN.format("1,200", 1, 1, 1) + SET.format("undesirable_weight", 800, "1,000")),
        (5000, 1, (1, 1), UNEVEN.format("5,000", 1, 1, 1)
         + "no weight balances them; use fewer answers of the larger label"),
        (30, 0, (1, 1), "all 30 answers are labeled true: kto needs answers of both labels"),
        (0, 30, (1, 1), "all 30 answers are labeled false: kto needs answers of both labels"),
        (90, 10, (1, 6), None), (90, 10, (1, 9), None), (55, 45, (1, 1), None), (48, 52, (1, 1), None),
        (9, 1, (1, 1), None),
    ],
)  # fmt: skip
def test_an_imbalance_of_labels_is_reported_with_the_weight_that_resolves_it(
    good: int, bad: int, weights: tuple[float, float], message: str | None
) -> None:
    found = label_imbalance(good, bad, LabelWeights(*weights))
    assert (found and found.message) == message
    assert label_imbalance(good, bad, None) is None


def test_labels_are_counted() -> None:
    assert labeled(3, 5).labels == (3, 5)


def test_unpaired_answers_have_one_mean_length() -> None:
    assert labeled(30, 10).mean_tokens == (3, 2.5, 0)
    assert labeled(30, 0).mean_tokens == (3, 2, 0)
    assert labeled(0, 10).mean_tokens == (3, 4, 0)
    assert labeled(5, 5).mean_characters == (2, 1, 0)


def test_mean_characters_and_skipped_rows_cover_all_rows() -> None:
    examiner = RowExaminer()
    assert (examiner.mean_characters, examiner.skipped) == (None, 0)
    for number, chosen in enumerate(("yes", "yes yes"), start=1):
        examiner.add_pair(replace(to_pair(pair("Well?", chosen, "no")), number=number))
    examiner.add_skipped(SkippedRow(3, "prompt is missing"))
    examiner.add_skipped(SkippedRow(4, "chosen is empty", "empty_side"))
    assert examiner.mean_characters == (5, 5, 2)
    assert (examiner.skipped, list(examiner.numbers)) == (2, [1, 2])


def test_the_same_answer_with_another_label_is_not_a_repetition() -> None:
    examiner = RowExaminer()
    for sides in ((assistant("a"), None), (None, assistant("a")), (assistant("a"), None)):
        examiner.add_pair(Pair((Message("user", "q"),), *sides, number=examiner.rows + 1))
    (finding,) = examiner.findings([])
    assert (finding.kind, finding.rows) == ("duplicates", [3])


def test_markers_of_the_format_in_the_text_are_found() -> None:
    found = examine([pair("a"), pair("b", "well<|im_end|>")], markers=("<|im_start|>", "<|im_end|>"))
    assert (found["markers_in_text"].count, found["markers_in_text"].rows) == (1, [2])


def test_rows_over_max_length_are_counted_with_truncated_tokens() -> None:
    examiner = RowExaminer()
    examiner.add_pair(to_pair(pair("a")), Lengths(prompt=5, chosen=5, rejected=5))
    examiner.add_pair(to_pair(pair("b")), Lengths(prompt=2, chosen=14, rejected=14, cut_prompt=3, cut_answers=40))
    (finding,) = examiner.findings([])
    assert (finding.kind, finding.count) == ("over_max_length", 1)
    assert "3 tokens are truncated from the beginning of prompts and 40 from the end of answers" in finding.message
    assert (examiner.longest, examiner.most_tokens, examiner.mean_tokens) == (16, 30, (3.5, 9.5, 9.5))


def test_at_most_five_rows_are_named() -> None:
    found = examine([pair("same") for _ in range(50)])
    assert found["duplicates"].count == 49
    assert found["duplicates"].rows == [2, 3, 4, 5, 6]


CHATML = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize("prompt", [CHATML, "<s>[INST] Hi [/INST]", "### Instruction:\nHi\n\n### Response:\n"])
def test_rows_that_are_already_formatted_are_reported_with_a_way_forward(prompt: str) -> None:
    found = examine([pair(prompt), pair("Hi")], markers=("<|im_start|>",))
    assert (found["already_formatted"].count, found["already_formatted"].rows) == (1, [1])
    assert "set format_type to raw" in found["already_formatted"].message
    assert set(found) == {"already_formatted"}
    assert examine([pair(prompt)], expects_formatted=True) == {}


def test_remarks_and_truncation_to_the_same_answers_are_counted() -> None:
    examiner = RowExaminer()
    lengths = Lengths(prompt=2, chosen=3, rejected=3, cut_answers=9, same_after_truncation=True)
    examiner.add_pair(to_pair(pair("a")), lengths, ["thought_restored"])
    kinds = [finding.kind for finding in examiner.findings([])]
    assert kinds == ["same_after_truncation", "thought_restored", "over_max_length"]


def test_pairs_that_differ_only_in_calls_thoughts_tools_or_template_arguments_are_not_the_same() -> None:
    def call(city: str) -> Message:
        return Message("assistant", "", tool_calls=({"function": {"name": "find", "arguments": {"city": city}}},))

    user = (Message("user", "Hi"),)
    examiner = RowExaminer()
    for number, made in enumerate(
        [
            Pair(user, call("Ulm"), call("Bonn")),
            Pair(user, call("Ulm"), call("Kiel")),
            Pair(user, call("Ulm"), call("Kiel"), tools=({"name": "find"},)),
            Pair(user, Message("assistant", "Yes", "a"), Message("assistant", "Yes", "b")),
            Pair(user, Message("assistant", "Yes", "a"), Message("assistant", "Yes", "c")),
            Pair(user, assistant("Yes"), assistant("No")),
            Pair(user, assistant("Yes"), assistant("No"), template_arguments={"enable_thinking": False}),
        ],
        start=1,
    ):
        examiner.add_pair(replace(made, number=number))
    assert examiner.findings([]) == []
