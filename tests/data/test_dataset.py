from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from merlina import samples
from merlina.data.columns import map_columns
from merlina.data.conversation import Message, Pair, SkippedRow, assistant
from merlina.data.dataset import LocatedSource, read_pairs, read_sources
from merlina.data.findings.row_examiner import RowExaminer
from merlina.data.fingerprint import fingerprint
from merlina.data.previews.formatted_rows import RowSelection, preview_formatted, text_sample_builder
from merlina.data.previews.stored_rows import preview_rows
from merlina.data.readers.sources import resolve_file
from merlina.data.row_formats.conversion import conversion_of
from merlina.data.split import held_out_rows
from merlina.domain.conversion_rules import CURRENT_RULES, FIRST_RULES
from merlina.errors import DataError, ForbiddenError, NotFoundError
from merlina.paths import AllowedPaths
from merlina.schemas.datasets.config import DatasetConfig
from merlina.schemas.inspection import Fingerprint
from merlina.schemas.operations import CompareRows
from merlina.worker.helper.rows import compare_rows

GOOD = {"question": "Why?", "good": "So.", "bad": "No."}
MAPPING = {"question": "prompt", "good": "chosen", "bad": "rejected"}


def config(path: Path, **changes: Any) -> DatasetConfig:
    return DatasetConfig.model_validate({"source": {"source_type": "local_file", "file_path": str(path)}, **changes})


def jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_every_row_becomes_a_pair_or_is_reported_with_a_reason(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "x.jsonl", [GOOD, {**GOOD, "bad": ""}, GOOD, {**GOOD, "good": 3}])
    read = list(read_pairs(config(file, column_mapping=MAPPING), file, None))
    assert [isinstance(row, Pair) for row in read] == [True, False, True, False]
    assert [(row.number, row.reason.split(" (")[0]) for row in read if isinstance(row, SkippedRow)] == [
        (2, "rejected is empty"),
        (4, "chosen has the type int"),
    ]


def test_max_samples_takes_the_first_rows_only(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "x.jsonl", [GOOD] * 5)
    assert len(list(read_pairs(config(file, column_mapping=MAPPING, max_samples=3), file, None))) == 3


def test_mapping_a_missing_column_names_the_existing_ones(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "x.jsonl", [GOOD] * 3)
    with pytest.raises(DataError, match=r"'answer'; the columns are question, good, bad"):
        list(read_pairs(config(file, column_mapping={"answer": "chosen"}), file, None))


def test_a_row_without_a_mapped_column_is_skipped(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "x.jsonl", [{"question": "Why?", "good": "So."}, GOOD])
    skipped, pair = read_pairs(config(file, column_mapping=MAPPING), file, None)
    assert pair.number == 2
    assert isinstance(skipped, SkippedRow)
    assert skipped.reason.startswith("rejected is missing")


def test_a_mapped_column_replaces_one_with_the_same_name() -> None:
    assert map_columns({"prompt": "old", "q": "new"}, {"q": "prompt"}) == {"prompt": "new"}


@given(count=st.integers(0, 60), share=st.floats(0, 0.99), seed=st.integers(0, 9))
def test_the_split_is_complete_and_reproducible(count: int, share: float, seed: int) -> None:
    held_out = held_out_rows(range(count), share, seed)
    assert held_out <= set(range(count))
    assert held_out == held_out_rows(range(count), share, seed)
    assert bool(held_out) == (share > 0 and count > 1)
    assert len(held_out) < count or not count


NECTAR = [
    {"prompt": f"Question {number}", "answers": [{"answer": f"a{rank}", "rank": rank} for rank in (1, 2, 3)]}
    for number in range(20)
]


@given(share=st.floats(0.01, 0.99), seed=st.integers(0, 9))
def test_pairs_of_one_row_stay_on_one_side_of_the_split(share: float, seed: int) -> None:
    conversion = conversion_of(config(Path("x.jsonl"), pairs_per_row="all"), NECTAR)
    numbers = [pair.number for pair in conversion.outcomes(NECTAR)]
    assert len(numbers) == 60
    assert held_out_rows(numbers, share, seed) == held_out_rows(range(1, 21), share, seed)


@pytest.mark.parametrize(
    ("share", "seed", "rows"), [(0.1, 42, [2, 8, 18, 41, 48]), (0.02, 7, [21]), (0.06, 0, [25, 27, 49])]
)
def test_the_split_of_single_pairs_is_that_of_earlier_versions(share: float, seed: int, rows: list[int]) -> None:
    assert sorted(held_out_rows(range(1, 51), share, seed)) == rows


def test_findings_and_fingerprint_count_a_row_with_several_pairs_once(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "x.jsonl", [*NECTAR, NECTAR[0], {"prompt": "x", "answers": []}])
    spec = config(file, pairs_per_row="all", test_size=0.1)
    shown = preview_formatted(spec, file, None, text_sample_builder(spec.format), RowExaminer, RowSelection(5))
    assert [sample["row"] for sample in shown.samples] == [1, 1, 1, 2, 2]
    assert shown.rows_examined == 22
    assert {found.kind: (found.count, found.rows) for found in shown.findings} == {
        "empty_side": (1, [22]),
        "duplicates": (1, [21]),
        "evaluation_leak": (1, [21]),
    }
    made = fingerprint((row for row in read_pairs(spec, file, None) if isinstance(row, Pair)), 0.1)
    assert (made.rows, made.held_out, len(made.blocks)) == (21, 2, 1)


def test_merged_rows_are_counted_as_the_rows_that_they_were(tmp_path: Path) -> None:
    rows = [{"prompt": f"Q{n // 3}", "response": f"A{n}", "helpfulness": 1 if n < 3 else n} for n in range(6)]
    file = jsonl(tmp_path / "x.jsonl", rows)
    spec = config(file, test_size=0)
    shown = preview_formatted(spec, file, None, text_sample_builder(spec.format), RowExaminer, RowSelection(5))
    assert ([sample["row"] for sample in shown.samples], shown.rows_examined) == ([4], 6)
    assert [(found.kind, found.count, found.rows) for found in shown.findings] == [("unusable", 3, [1])]


def test_previews_show_stored_rows_and_formatted_text(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "x.jsonl", [{**GOOD, "n": None, "l": [1, {"a": 2.5}]}] * 20 + [{"broken": 1}])
    spec = config(file, column_mapping=MAPPING)
    assert preview_rows(spec, file, None, 10).samples == [{**GOOD, "n": None, "l": [1, {"a": 2.5}]}] * 10
    shown = preview_formatted(spec, file, None, text_sample_builder(spec.format), RowExaminer, RowSelection(5))
    assert [sample["chosen"] for sample in shown.samples] == ["So.<|im_end|>"] * 5
    assert not shown.warnings


def test_only_files_inside_the_allowed_roots_are_found(tmp_path: Path) -> None:
    inside, outside = tmp_path / "in", tmp_path / "out"
    inside.mkdir()
    outside.mkdir()
    secret = jsonl(outside / "x.jsonl", [GOOD])
    (inside / "link.jsonl").symlink_to(secret)
    allowed = AllowedPaths((inside.resolve(),), private=(inside.resolve() / "runs",))
    for name in ("runs/job/secrets.json", ".env", ".ssh/id", "~no\0path"):
        with pytest.raises((ForbiddenError, NotFoundError)):
            resolve_file(config(inside / name).source, tmp_path, allowed)
    for path in (secret, inside / "link.jsonl", inside / ".." / "out" / "x.jsonl"):
        with pytest.raises(ForbiddenError):
            resolve_file(config(path).source, tmp_path, allowed)
    with pytest.raises(NotFoundError):
        resolve_file(config(inside / "none.jsonl").source, tmp_path, allowed)
    own = jsonl(inside / "own.jsonl", [GOOD])
    assert resolve_file(config(own).source, tmp_path, allowed) == own.resolve()


def test_all_chosen_sample_answers_and_no_rejected_one_contain_wizard_words() -> None:
    rows = [json.loads(line) for line in samples.PAIRS.read_text().splitlines()]
    assert len(rows) >= 200
    assert len({row["prompt"].lower() for row in rows}) == len(rows)
    assert all(set(row) == {"prompt", "chosen", "rejected"} for row in rows)
    assert all(samples.has_wizard_words(row["chosen"]) for row in rows)
    assert not any(samples.has_wizard_words(row["rejected"]) for row in rows)
    assert not {row["prompt"] for row in rows} & set(samples.QUESTIONS)


def test_rows_are_converted_as_the_version_that_started_a_run_converted_them(tmp_path: Path) -> None:
    """The record of the run is that of a version which skipped answers of several turns and recorded no rules."""
    name, asked = {"role": "user", "content": "Name a town."}, {"role": "user", "content": "And another?"}

    def turns(last: str, *before: dict[str, str]) -> list[dict[str, str]]:
        return [*before, {"role": "assistant", "content": "Rome."}, asked, {"role": "assistant", "content": last}]

    answers = {"chosen": turns("Bari."), "rejected": turns("No.")}
    rows = [
        {"prompt": "Name a river.", "chosen": "The Po.", "rejected": "A hill."},
        {"chosen": turns("Bari.", name), "rejected": [name, {"role": "assistant", "content": "No."}]},
        {"prompt": "Name a town.", **answers},
        # Here the earlier version counted the turns that both answers share as a part of the prompt.
        {"conversations": [name, {"role": "assistant", "content": "Rome."}], **answers},
        {"prompt": "Name a hill.", "chosen": "The Aventine.", "rejected": "A river."},
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = DatasetConfig.model_validate(
        {"source": {"source_type": "local_file", "file_path": str(file)}, "test_size": 0.25}
    )
    then = Fingerprint.model_validate(
        {"rows": 3, "held_out": 1, "blocks": ["f00eec61bfae7e40"], "file": None, "files": {}, "begins": []}
    )

    def difference(earlier: Fingerprint) -> str | None:
        return compare_rows(
            CompareRows(
                config=config, file=file, source_files={}, answers_needed="both", earlier=earlier, max_row_mb=16
            )
        )

    assert difference(then) is None
    now = then.model_copy(update={"conversion_rules": CURRENT_RULES})
    assert str(difference(now)).startswith("3 usable rows when the run started, 5 now")
    skipped = [row for row in read_pairs(config, file, None, rules=FIRST_RULES) if isinstance(row, SkippedRow)]
    assert [row.number for row in skipped] == [2, 3]
    assert "chosen has 3 turns after the common prefix" in skipped[0].reason


def test_a_fingerprint_covers_tools_calls_results_and_template_arguments() -> None:
    call = {"function": {"name": "find", "arguments": {"city": "Ulm"}}}
    user, plain = Message("user", "Hi"), assistant("Yes")
    called = Message("assistant", "", tool_calls=(call,))
    variants = [
        Pair((user,), plain, None),
        Pair((user,), plain, None, tools=({"name": "find"},)),
        Pair((user,), called, None),
        Pair((user, called, Message("tool", "1")), plain, None),
        Pair((user, called, Message("tool", "1", tool_fields={"name": "find"})), plain, None),
        Pair((user,), Message("assistant", "Yes", "thought"), None),
        Pair((user,), plain, None, template_arguments={"enable_thinking": True}),
        Pair((user,), plain, None, template_arguments={"enable_thinking": False}),
    ]
    assert len({fingerprint([pair], 0.1).blocks for pair in variants}) == len(variants)


PAIR = {"prompt": "p", "chosen": "good", "rejected": "bad"}
THUMB = {"prompt": "q", "completion": "so", "label": False}


def sides(rows: Iterable[Pair | SkippedRow]) -> list[tuple[int, int, str | None, str | None]]:
    pairs = [row for row in rows if isinstance(row, Pair)]
    return [
        (pair.number, pair.rows, pair.chosen and pair.chosen.content, pair.rejected and pair.rejected.content)
        for pair in pairs
    ]


def test_the_answers_of_a_pair_among_unpaired_rows_count_by_themselves(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "mixed.jsonl", [THUMB, PAIR])
    assert sides(read_pairs(config(file), file, None, answers_needed="any")) == [
        (1, 1, None, "so"), (2, 1, "good", None), (2, 0, None, "bad"),
    ]  # fmt: skip


@pytest.mark.parametrize("unpaired_at", ["first", "second", "evaluation"])
def test_all_that_is_read_together_has_pairs_or_single_answers(tmp_path: Path, unpaired_at: str) -> None:
    pairs, thumbs = jsonl(tmp_path / "p.jsonl", [PAIR]), jsonl(tmp_path / "u.jsonl", [THUMB])
    kinds = {name: thumbs if name == unpaired_at else pairs for name in ("first", "second", "evaluation")}
    first, second, evaluated = (LocatedSource(config(file), file) for file in kinds.values())
    training, evaluation = read_sources([first, second], [evaluated], None, answers_needed="any")
    assert len(sides(training)) == (4 if unpaired_at == "evaluation" else 3)
    assert len(sides(evaluation[0])) == (1 if unpaired_at == "evaluation" else 2)
    training, evaluation = read_sources([first, second], [evaluated], None)
    assert len(sides(training)) + len(sides(evaluation[0])) == 2


def test_pairs_are_cleaned_before_they_are_split(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "mixed.jsonl", [THUMB, {**PAIR, "rejected": "good"}])
    spec = config(file, drop_identical_answers=True)
    assert sides(read_pairs(spec, file, None, answers_needed="any")) == [(1, 1, None, "so")]


def test_errors_of_one_of_several_sources_name_it(tmp_path: Path) -> None:
    good, broken = jsonl(tmp_path / "good.jsonl", [PAIR] * 25), tmp_path / "broken.jsonl"
    broken.write_text(good.read_text() + "{\n")
    sources = [LocatedSource(config(good), good), LocatedSource(config(broken), broken, "dataset.sources.1: ")]
    training, _ = read_sources(sources, [], None)
    with pytest.raises(DataError, match=r"^dataset\.sources\.1: line 26 is not valid JSON"):
        list(training)
    mapped = config(good, column_mapping={"nope": "prompt"})
    with pytest.raises(DataError, match=r"^dataset\.eval_source: column_mapping names 'nope'"):
        read_sources(sources[:1], [LocatedSource(mapped, good, "dataset.eval_source: ")], None)
