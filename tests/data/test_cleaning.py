"""The cleaning options, through `read_pairs` and a preview."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from merlina.data.conversation import Message, Pair, SkippedRow
from merlina.data.dataset import read_pairs
from merlina.data.findings.row_examiner import RowExaminer
from merlina.data.fingerprint import digest_of
from merlina.data.previews.formatted_rows import RowSelection, preview_formatted, text_sample_builder
from merlina.schemas.datasets.config import DatasetConfig

ROWS = [
    {"prompt": "Name a river.", "chosen": " The Rhine.\n", "rejected": "A hill."},
    {"prompt": "Name a river. ", "chosen": "The Rhine.", "rejected": "A hill."},
    {"prompt": "Name a hill.", "chosen": "None.", "rejected": "None. "},
    {"prompt": "Name a sea.", "chosen": "The Baltic.", "rejected": "A lake.", "system": "Be brief."},
]


def read(folder: Path, **options: Any) -> tuple[list[Pair], list[SkippedRow]]:
    spec, file = written(folder, **options)
    rows = list(read_pairs(spec, file, None))
    return [row for row in rows if isinstance(row, Pair)], [row for row in rows if isinstance(row, SkippedRow)]


def written(folder: Path, **options: Any) -> tuple[DatasetConfig, Path]:
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    source = {"source_type": "local_file", "file_path": str(file)}
    return DatasetConfig.model_validate({"source": source, "test_size": 0, **options}), file


def test_nothing_is_changed_or_dropped_by_default(tmp_path: Path) -> None:
    pairs, skipped = read(tmp_path)
    assert [pair.chosen.content for pair in pairs] == [row["chosen"] for row in ROWS]
    assert not skipped


def test_each_option_drops_its_rows_with_a_reason(tmp_path: Path) -> None:
    pairs, skipped = read(tmp_path, drop_duplicates=True, drop_identical_answers=True)
    assert [pair.number for pair in pairs] == [1, 4]
    assert [(row.number, row.kind, row.reason) for row in skipped] == [
        (2, "dropped_duplicates", "it repeats an earlier row"),
        (3, "dropped_identical_answers", "both answers are the same"),
    ]


def test_strip_removes_whitespace_around_every_message(tmp_path: Path) -> None:
    pairs, _ = read(tmp_path, strip=True)
    assert pairs[0] == pairs[1]
    assert pairs[0].chosen.content == "The Rhine."


def test_a_default_system_message_is_given_to_rows_without_one(tmp_path: Path) -> None:
    pairs, _ = read(tmp_path, default_system="Be kind.")
    assert [pair.prompt[0] for pair in pairs] == [Message("system", "Be kind.")] * 3 + [Message("system", "Be brief.")]


def test_answers_of_several_turns_are_compared_and_cleaned_whole(tmp_path: Path) -> None:
    def answer(*texts: str) -> list[dict[str, str]]:
        return [{"role": ("assistant", "user")[place % 2], "content": text} for place, text in enumerate(texts)]

    texts = (("a", "b", "c"), (" a ", "b", "c "), ("a", "x", "c"), ("a", "b", "x"))
    rows = [{"prompt": "Why?", "chosen": answer(*chosen), "rejected": answer("a", "b", "no")} for chosen in texts]
    file = tmp_path / "turns.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"source_type": "local_file", "file_path": str(file)}
    spec = DatasetConfig.model_validate({"source": source, "drop_duplicates": True, "strip": True})
    first, dropped, *others = read_pairs(spec, file, None)
    assert isinstance(first, Pair)
    assert isinstance(first.chosen, Message)
    assert [turn.content for turn in first.chosen.turns] == ["a", "b", "c"]
    assert isinstance(dropped, SkippedRow)
    assert all(isinstance(pair, Pair) for pair in others)
    plain = DatasetConfig.model_validate({"source": source})
    found = {digest_of([replace(pair, number=1)]) for pair in read_pairs(plain, file, None) if isinstance(pair, Pair)}
    assert len(found) == 4


def test_a_finding_names_the_option_that_resolves_it(tmp_path: Path) -> None:
    def found(**options: Any) -> dict[str, tuple[int, str | None]]:
        spec, file = written(tmp_path, **options)
        shown = preview_formatted(spec, file, None, text_sample_builder(spec.format), RowExaminer, RowSelection(5))
        return {finding.kind: (finding.count, finding.option) for finding in shown.findings}

    before = found()
    assert before == {"identical_answers": (1, "drop_identical_answers"), "duplicates": (1, "drop_duplicates")}
    options = {str(option): True for _, option in before.values()}
    assert found(**options) == {"dropped_duplicates": (1, None), "dropped_identical_answers": (1, None)}
