from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from merlina import samples
from merlina.data.columns import map_columns
from merlina.data.conversation import Message, Pair, assistant
from merlina.data.dataset import SkippedRow, read_pairs, split_pairs
from merlina.data.preview import preview_formatted, preview_rows, text_sample_builder
from merlina.data.readers.sources import resolve_file
from merlina.data.row_examiner import RowExaminer
from merlina.errors import DataError, ForbiddenError, NotFoundError
from merlina.paths import AllowedPaths
from merlina.schemas.datasets import DatasetConfig

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
    pairs = [Pair((Message("user", str(index)),), assistant("c"), assistant("r")) for index in range(count)]
    training, held_out = split_pairs(pairs, share, seed)
    assert sorted(map(pairs.index, training + held_out)) == list(range(count))
    assert (training, held_out) == split_pairs(pairs, share, seed)
    assert bool(held_out) == (share > 0 and count > 1)
    assert training or not pairs


def test_previews_show_stored_rows_and_formatted_text(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "x.jsonl", [{**GOOD, "n": None, "l": [1, {"a": 2.5}]}] * 20 + [{"broken": 1}])
    spec = config(file, column_mapping=MAPPING)
    assert preview_rows(spec, file, None, 10).samples == [{**GOOD, "n": None, "l": [1, {"a": 2.5}]}] * 10
    shown = preview_formatted(spec, file, None, text_sample_builder(spec.format), RowExaminer(), 5)
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
