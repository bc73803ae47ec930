from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from merlina.data.findings.row_examiner import RowExaminer, row_examiner
from merlina.data.previews.formatted_rows import (
    FormattedPreview,
    RowSelection,
    preview_formatted,
    text_sample_builder,
)
from merlina.data.previews.stored_rows import preview_rows
from merlina.errors import DataError
from merlina.schemas.datasets.config import DatasetConfig


def config(path: Path, rows: Sequence[dict[str, Any]], **changes: Any) -> DatasetConfig:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return DatasetConfig.model_validate({"source": {"source_type": "local_file", "file_path": str(path)}, **changes})


def pair(number: int, **changes: Any) -> dict[str, Any]:
    return {"prompt": f"Why {number}?", "chosen": "So.", "rejected": "No.", **changes}


def shown(spec: DatasetConfig, start: int = 1, only: Any = None, limit: int = 5) -> FormattedPreview:
    def examiner() -> RowExaminer:
        return row_examiner(spec.format.format_type)

    file = Path(str(spec.source.file_path))
    return preview_formatted(
        spec, file, None, text_sample_builder(spec.format), examiner, RowSelection(limit, start, only)
    )


def test_all_rows_are_shown_one_response_after_the_other(tmp_path: Path) -> None:
    rows = [pair(n) if n % 3 else pair(n, chosen="") for n in range(1, 48)]
    spec = config(tmp_path / "x.jsonl", rows)
    start: int | None = 1
    numbers: list[int] = []
    while start is not None:
        preview = shown(spec, start)
        numbers += [row.row for row in preview.rows]
        assert [row.stored for row in preview.rows] == [[rows[row.row - 1]] for row in preview.rows]
        used = [row.row for row in preview.rows if row.pairs]
        assert {sample["row"] for sample in preview.samples} >= set(used)
        assert all(row.reason == "chosen is empty" for row in preview.rows if not row.pairs)
        start = preview.next_row
    assert numbers == list(range(1, 48))


def test_only_rows_with_findings_are_shown(tmp_path: Path) -> None:
    # More than are examined without a search, but few enough for its three seconds on a slow machine.
    rows = [pair(n) for n in range(1, 701)]
    rows[29] = pair(30, rejected="So.")
    rows[599] = pair(600, chosen="")
    rows[649] = pair(7)
    spec = config(tmp_path / "x.jsonl", rows)
    every = shown(spec, only="findings")
    assert [(row.row, row.findings) for row in every.rows] == [
        (30, ["identical_answers"]),
        (600, ["empty_side"]),
        (650, ["duplicates"]),
    ]
    assert (every.next_row, every.rows_examined) == (None, 700)
    assert [sample["row"] for sample in every.samples] == [30, 650]
    assert [row.row for row in shown(spec, only="empty_side").rows] == [600]
    assert [row.row for row in shown(spec, 31, "findings", limit=1).rows] == [600]
    assert shown(spec, 31, "findings", limit=1).next_row == 601
    assert shown(spec, only="over_max_length").rows == []


def test_the_format_is_that_of_the_first_rows_of_the_file(tmp_path: Path) -> None:
    alpaca = {"instruction": "Why?", "output": ["So.", "No."]}
    spec = config(tmp_path / "x.jsonl", [*[alpaca] * 20, *[pair(n) for n in range(21, 60)]])
    preview = shown(spec, 40)
    assert preview.detected_format is not None
    assert preview.detected_format.name == "alpaca"
    assert preview_rows(spec, tmp_path / "x.jsonl", None, 3, start=40).detected_format == preview.detected_format


def test_merged_rows_are_the_same_from_any_of_them(tmp_path: Path) -> None:
    rows = [{"prompt": f"Q{n // 3}", "response": f"A{n}", "helpfulness": n % 3} for n in range(300)]
    spec = config(tmp_path / "x.jsonl", rows)
    for start in (151, 152, 153):
        preview = shown(spec, start)
        first = preview.rows[0]
        assert (first.row, first.last_row, first.stored, first.pairs) == (151, 153, rows[150:153], 1)
        assert preview.samples[0]["chosen"] == "A152<|im_end|>"
        assert preview.next_row == 166
    assert shown(spec, 299).next_row is None


def test_rows_that_repeat_an_earlier_one_are_dropped_from_any_row_on(tmp_path: Path) -> None:
    spec = config(tmp_path / "x.jsonl", [pair(n % 50) for n in range(100)], drop_duplicates=True)
    assert [row.findings for row in shown(spec, 80).rows] == [["dropped_duplicates"]] * 5


def test_a_row_whose_pairs_do_not_fit_begins_the_next_response(tmp_path: Path) -> None:
    answers = [{"answer": f"a{rank}", "rank": rank} for rank in (1, 2, 3)]
    rows = [{"prompt": f"Q{n}", "answers": answers} for n in range(4)]
    spec = config(tmp_path / "x.jsonl", rows, pairs_per_row="all")
    first = shown(spec)
    assert ([(row.row, row.pairs) for row in first.rows], first.next_row) == ([(1, 3)], 2)
    assert [sample["row"] for sample in shown(spec, 2).samples] == [2, 2, 2, 3, 3]


@pytest.mark.parametrize("limited", [False, True])
def test_a_row_after_the_last_one_is_an_error(tmp_path: Path, limited: bool) -> None:
    spec = config(tmp_path / "x.jsonl", [pair(n) for n in range(40)], max_samples=30 if limited else None)
    last = 30 if limited else 40
    assert [row.row for row in shown(spec, last).rows] == [last]
    assert preview_rows(spec, tmp_path / "x.jsonl", None, 10, start=last).next_row is None
    with pytest.raises(DataError, match=f"There is no row {last + 1}"):
        shown(spec, last + 1)
    with pytest.raises(DataError, match=f"There is no row {last + 1}"):
        preview_rows(spec, tmp_path / "x.jsonl", None, 10, start=last + 1)


def test_the_histogram_counts_the_pairs_of_the_examined_rows(tmp_path: Path) -> None:
    spec = config(tmp_path / "x.jsonl", [pair(n, chosen="a" * n) for n in range(1, 61)])
    lengths = shown(spec).lengths
    assert lengths is not None
    assert (lengths.unit, sum(lengths.counts), lengths.longest) == ("characters", 60, 60 + len("Why 60?"))
