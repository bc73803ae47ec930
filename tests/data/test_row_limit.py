from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from merlina.data.previews.row_shortening import truncate_row
from merlina.data.readers.files import count_rows, detect_format, parse_all, read_rows
from merlina.data.readers.row_limit import RowLimit
from merlina.errors import DataError
from merlina.schemas.parsing.json_text import has_more_values, nesting_depth

MB = 1024**2
LIMIT = RowLimit(MB)
LONG = "x" * (MB + 1)


def written(name: str, text: str, encoding: str = "utf-8") -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        path = folder / name
        path.write_text(text, encoding=encoding)
        return path

    return write


def parquet(name: str, table: pa.Table) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        pq.write_table(table, folder / name)
        return folder / name

    return write


NULLS = pa.table({"a": pa.array([[None] * 1_000_001], pa.list_(pa.null()))})
STRUCTS = pa.table({"a": pa.array([[{"b": True}] * 1_000_001], pa.list_(pa.struct([("b", pa.bool_())])))})
TOO_LARGE = {
    "a CSV file without a newline": (written("x.csv", f"a,b\n1,{LONG}"), "line 2 is larger than 1 MiB"),
    "a CSV cell over many lines": (written("x.csv", 'a,b\n1,"' + "long\n" * 300_000 + '"\n'), "line 2 is larger"),
    "a CSV header": (written("x.csv", f"{LONG},b\n1,2\n"), "line 1 is larger"),
    "a CSV row of many cells": (written("x.csv", "a,b\n" + "12," * 400_000 + "\n"), "line 2 is larger"),
    "a CSV row in another alphabet": (written("x.csv", "a,b\n" + "ж" * 600_000 + ",1\n"), "line 2 is larger"),
    "a JSON line": (written("x.jsonl", '{"a": 1}\n{"a": "' + LONG + '"}\n'), "line 2 is larger"),
    "an array's element": (written("x.json", '[{"a": 1}, {"a": "' + LONG + '"}]'), "row 2 is larger"),
    "an array's endless text": (written("x.json", '[{"a": "' + LONG), "row 1 is larger"),
    "a single object": (written("x.json", '{"a": "' + LONG + '"}'), "row 1 is larger"),
    "a row of columns": (written("x.json", '{"a": ["x", "' + LONG + '"]}'), "row 2 is larger"),
    "UTF-16 lines": (written("x.jsonl", '{"a": "' + LONG + '"}\n', "utf-16"), "line 1 is larger"),
    "lines behind a byte-order mark": (written("x.jsonl", '{"a": "' + LONG + '"}\n', "utf-8-sig"), "line 1 is larger"),
    "a Parquet cell": (parquet("x.parquet", pa.table({"a": ["x", LONG]})), "row 2 is larger"),
    "a Parquet list of nulls": (parquet("x.parquet", NULLS), "row 1 contains more than 1,000,000 values"),
    "a Parquet list of structs": (parquet("x.parquet", STRUCTS), "row 1 "),
}


@pytest.mark.parametrize(("write", "complaint"), TOO_LARGE.values(), ids=TOO_LARGE)
def test_every_reader_rejects_a_row_over_the_limit(
    tmp_path: Path, write: Callable[[Path], Path], complaint: str
) -> None:
    path = write(tmp_path)
    for read in (
        lambda: list(read_rows(path, detect_format(path), LIMIT)),
        lambda: parse_all(path, detect_format(path), LIMIT),
    ):
        with pytest.raises(DataError, match=complaint) as error:
            read()
        assert len(error.value.message) < 300


@pytest.mark.parametrize("name", ["x.jsonl", "x.json", "x.csv", "x.parquet"])
def test_a_row_just_below_the_limit_is_read(tmp_path: Path, name: str) -> None:
    row = {"a": "x" * (MB - 100), "b": "ж"}
    texts = {"x.jsonl": json.dumps(row) + "\n", "x.json": json.dumps([row, row]), "x.csv": f"a,b\n{row['a']},ж\n"}
    path = tmp_path / name
    if name == "x.parquet":
        pq.write_table(pa.Table.from_pylist([row]), path)
    else:
        path.write_text(texts[name])
    assert next(read_rows(path, detect_format(path), LIMIT)) == row
    assert count_rows(path, detect_format(path), LIMIT) == (2 if name == "x.json" else 1)


def test_a_short_row_with_too_many_values_or_columns_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"a": [' + "{}," * 1_000_001 + "{}]}\n")
    with pytest.raises(DataError, match="line 1 contains more than 1,000,000 values"):
        list(read_rows(path, "jsonl"))
    path.write_text(json.dumps({f"column {number}": 1 for number in range(10_001)}) + "\n")
    with pytest.raises(DataError, match="10,001 columns"):
        list(read_rows(path, "jsonl"))


def test_brackets_and_commas_inside_text_do_not_count_as_values() -> None:
    text = json.dumps({"a": '[{,"\\' * 100, "b": [1, 2]}).encode()
    assert not has_more_values(text, 6)
    assert has_more_values(text, 3)
    assert nesting_depth(text, 10) == 2


def test_truncated_parts_of_a_row_are_noted() -> None:
    row = {
        "text": "é\n" * 100_000,
        "list": list(range(50_000)),
        "object": {f"key {number}": "v" for number in range(50_000)},
        "short": "all of it",
        "number": 10**5000,
    }
    shown = truncate_row(row)
    assert len(json.dumps(shown, ensure_ascii=False).encode()) < 45_000
    kept = shown["text"].count("é\n")
    assert shown["text"].endswith(f"… ({200_000 - 2 * kept:,} more characters)") or "more characters" in shown["text"]
    items = shown["list"]
    assert items[-1] == f"… ({50_000 - (len(items) - 1):,} more items)"
    assert shown["object"]["…"] == f"{50_000 - (len(shown['object']) - 1):,} more keys"
    assert shown["short"] == "all of it"
    many = truncate_row({f"column {number}": "x" * 1000 for number in range(9000)})
    assert many["…"] == f"{9000 - (len(many) - 1):,} more columns"
