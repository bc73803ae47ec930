from __future__ import annotations

import csv
import json
import math
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from merlina.data.readers.files import count_rows, detect_format, parse_all, read_rows
from merlina.errors import DataError

ROWS = [{"prompt": "a", "chosen": "b", "rejected": "c"}, {"prompt": "ä\n1", "chosen": 'say "hi"', "rejected": "x, y"}]
text = st.text(st.characters(exclude_categories=("Cs",)), max_size=30)
rows = st.lists(st.fixed_dictionaries({"prompt": text, "chosen": text, "rejected": text}), min_size=1, max_size=8)
per_file = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def write(path: Path, file_format: str, content: list[dict[str, Any]]) -> Path:
    if file_format == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in content))
    elif file_format == "json":
        path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    elif file_format == "csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(content[0]))
            writer.writeheader()
            writer.writerows(content)
    else:
        pq.write_table(pa.Table.from_pylist(content), path)
    return path


@per_file
@given(content=rows, file_format=st.sampled_from(["json", "jsonl", "parquet"]))
def test_rows_are_read_as_they_were_written(tmp_path: Path, content: list[dict[str, Any]], file_format: Any) -> None:
    path = write(tmp_path / "rows", file_format, content)
    assert list(read_rows(path, file_format)) == content
    assert count_rows(path, file_format) == len(content)


@per_file
@given(
    content=st.lists(
        st.fixed_dictionaries({"a": st.from_regex(r"[^\r\0]*", fullmatch=True), "b": st.just("x")}), min_size=1
    )
)
def test_csv_cells_keep_quotes_commas_and_newlines(tmp_path: Path, content: list[dict[str, str]]) -> None:
    assert list(read_rows(write(tmp_path / "rows.csv", "csv", content), "csv")) == content


@pytest.mark.parametrize("file_format", ["json", "jsonl", "csv", "parquet"])
def test_the_format_is_detected_by_name_and_by_content(tmp_path: Path, file_format: str) -> None:
    named = write(tmp_path / f"rows.{file_format}", file_format, ROWS)
    assert detect_format(named) == file_format
    if file_format != "csv":
        nameless = write(tmp_path / "rows", file_format, ROWS)
        assert detect_format(nameless) == file_format
        assert list(read_rows(nameless, file_format)) == ROWS  # type: ignore[arg-type]


def test_an_unknown_format_is_an_error_that_lists_supported_ones(tmp_path: Path) -> None:
    path = tmp_path / "rows.xz"
    path.write_bytes(b"\xfd7zXZ\0")
    with pytest.raises(DataError, match=r"rows\.xz.*json, jsonl, csv, tsv and parquet.* \.gz or \.zst"):
        detect_format(path)


def test_byte_order_marks_blank_lines_and_windows_newlines_are_accepted(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n\r\n  \n{"a": 2}')
    assert list(read_rows(path, "jsonl")) == [{"a": 1}, {"a": 2}]
    path.write_bytes(b"\xef\xbb\xbfa,b\r\n1,2\r\n")
    assert list(read_rows(path, "csv")) == [{"a": "1", "b": "2"}]
    path.write_bytes(b'\xef\xbb\xbf  [{"a": 1}]\n')
    assert list(read_rows(path, "json")) == [{"a": 1}]


@pytest.mark.parametrize("first", ['{"prompt": "P",', '{"prompt":', '{ "tags": [', "{", '\ufeff{"prompt": "é",  '])
@pytest.mark.parametrize("length", [1, 200_000])
def test_one_multi_line_object_is_a_row_even_as_jsonl(tmp_path: Path, first: str, length: int) -> None:
    rest = {"{": '"prompt": "P",', '{"prompt":': '"P",', '{ "tags": [': '{"tag": 1}\n],'}.get(first, "")
    path = tmp_path / "rows.jsonl"
    text = f'{first}\n{rest}\n  "chosen": "{"long " * length}",\n  "rejected": "R"\n}}\n'
    path.write_text(text)
    expected = json.loads(text.removeprefix("\ufeff"))
    assert parse_all(path, "jsonl") == 1
    assert list(read_rows(path, "jsonl")) == [expected]


def test_a_large_file_that_starts_like_one_object_is_not_read_into_memory(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"prompt": "P",\n"chosen": "')
    os.truncate(path, 20 * 1024**3)
    with pytest.raises(DataError, match="one object and larger than 64 MiB"):
        next(read_rows(path, "jsonl"))


def test_an_object_of_columns_is_read_as_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text('{"a": [1, 2], "b": ["x", NaN]}')
    assert list(read_rows(path, "json")) == [{"a": 1, "b": "x"}, {"a": 2, "b": None}]


@per_file
@given(words=st.lists(st.sampled_from(["NaN", "Infinity", '"', "\\", " ", "a", "\\NaN"]), max_size=12))
def test_nan_is_a_missing_value_but_unchanged_inside_text(tmp_path: Path, words: list[str]) -> None:
    path = tmp_path / "rows.json"
    inside = "".join(words)
    path.write_text(f'[{{"a": NaN, "t": {json.dumps(inside)}, "b": -Infinity, "c": [1, NaN]}}, {{"a": Infinity}}]')
    assert list(read_rows(path, "json")) == [{"a": None, "t": inside, "b": None, "c": [1, None]}, {"a": None}]


def test_nan_in_lines_and_columns_is_a_missing_value(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": NaN, "b": "NaN"}\n')
    assert list(read_rows(path, "jsonl")) == [{"a": None, "b": "NaN"}]
    pq.write_table(pa.table({"a": [math.nan, 1.0]}), tmp_path / "rows.parquet")
    assert list(read_rows(tmp_path / "rows.parquet", "parquet")) == [{"a": None}, {"a": 1.0}]


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("x.jsonl", '{"a": 1}\n{"a": \n', "line 2 is not valid JSON: a value was expected at column 6"),
        ("x.jsonl", '{"a": 1\n{"a": 2}\n', "line 1 is not valid JSON: a comma or the end .* at column 8"),
        (
            "x.jsonl",
            '{"a": "x\n{"a": 2}\n',
            "line 1 is not valid JSON: a string has no closing quotation mark at column 7",
        ),
        ("x.jsonl", '{"a": 1,\n"b": oops}\n', "The file is not valid JSON: a value was expected at line 2, column 6"),
        ("x.jsonl", '{"a": 1,\n"b": 2}\n{"a": 1,\n"b": 2}', "there is more text after .* at line 3, column 1"),
        ("x.jsonl", '{"a": 1}\n[1]\n', "line 2 is a JSON array"),
        ("x.jsonl", '{"a": ' + "[" * 100_000 + "\n", "line 1 is nested too deeply"),
        ("x.json", '[{"a": 1}, {"a" 2}]', "row 2 is not valid JSON"),
        ("x.json", '[{"a": 1},\n {"a" 2}]', "row 2 is not valid JSON: a colon was expected at line 2, column 7"),
        (
            "x.json",
            "[\n" + '{"a": 1},\n' * 70_000 + "{b}]",
            "a name in double quotes was expected at line 70002, column 2",
        ),
        (
            "x.json",
            "[" + '{"a": 1},' * 70_000 + "{b}]",
            "a name in double quotes was expected at line 1, column 630003",
        ),
        ("x.json", '[{"a": 1}, 3]', "row 2 is a JSON number"),
        ("x.json", '[{"a": 1}', "row 2 is not valid JSON"),
        ("x.json", '{"a": [1], "b": []}', "differ in length"),
        ("x.json", '"text"', "must contain an array"),
        ("x.csv", "a,b\n1,2\n1,2,3\n", "line 3 has more cells"),
        ("x.csv", "a,a\n1,2\n", "names a column twice"),
        ("x.csv", 'a,b\n"1,2\n', "is not valid CSV"),
        ("x.parquet", "no parquet", "not readable as Parquet"),
        ("x.jsonl", "\n\n", "no rows"),
        ("x.json", "[]", "no rows"),
        ("x.json", "", "no rows"),
        ("x.csv", "a,b\n", "no rows"),
    ],
)
def test_unreadable_content_is_an_error_with_its_place(tmp_path: Path, name: str, content: str, complaint: str) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(DataError, match=complaint):
        parse_all(path, detect_format(path))


def test_text_that_is_not_utf8_is_an_error_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": "\xff"}\n')
    with pytest.raises(DataError, match="line 2 is not UTF-8"):
        parse_all(path, "jsonl")


def test_rows_are_read_lazily(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n' + "broken\n")
    assert next(read_rows(path, "jsonl")) == {"a": 1}


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_csv_is_detected_by_content_with_each_separator(tmp_path: Path, separator: str) -> None:
    path = tmp_path / "data.txt"
    path.write_text(f"a{separator}b\r\n1{separator}2\r\n\r\n3{separator}4")
    assert detect_format(path) == "csv"
    assert list(read_rows(path, "csv")) == [{"a": "1", "b": "2"}, {"a": "3", "b": "4"}]
    assert count_rows(path, "csv") == 2


def test_json_lines_in_a_file_named_json_are_read_as_lines(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text('{"a": 1}\n{"a": 2}\n')
    assert detect_format(path) == "jsonl"


@pytest.mark.parametrize("name", ["x.json", "x.jsonl"])
@pytest.mark.parametrize(
    ("content", "rows"),
    [
        ('{"prompt": "p", "chosen": "c"}', [{"prompt": "p", "chosen": "c"}]),
        ('\n{\n  "prompt": "p",\n  "chosen": ["c"]\n}\n', [{"prompt": "p", "chosen": ["c"]}]),
        ('[{"a": 1},\n {"a": 2}]\n', [{"a": 1}, {"a": 2}]),
        ('[\n  {"a": 1}\n]', [{"a": 1}]),
        ('\ufeff{"a": 1}\n\n{"a": 2}\n', [{"a": 1}, {"a": 2}]),
        (
            '{\n"chosen": [{"role": "user"}, {"role": "assistant"}], "rejected": [{"role": "user"}]}',
            [{"chosen": [{"role": "user"}, {"role": "assistant"}], "rejected": [{"role": "user"}]}],
        ),
    ],
)
def test_content_decides_how_json_is_read_not_the_name(
    tmp_path: Path, name: str, content: str, rows: list[Any]
) -> None:
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    assert list(read_rows(path, detect_format(path))) == rows
    assert count_rows(path, detect_format(path)) == parse_all(path, detect_format(path)) == len(rows)
    assert list(read_rows(path, "json")) == list(read_rows(path, "jsonl")) == rows


def test_columns_of_messages_with_one_role_each_are_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    user, model = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
    path.write_text(json.dumps({"prompt": [user, user], "chosen": [model, model]}))
    assert list(read_rows(path, "json")) == [{"prompt": user, "chosen": model}] * 2


def test_invalid_text_in_parquet_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    broken = pa.StringArray.from_buffers(1, pa.array([0, 2], pa.int32()).buffers()[1], pa.py_buffer(b"\xff\xfe"))
    pq.write_table(pa.table({"a": broken}), path)
    with pytest.raises(DataError, match="cannot be read after row 0"):
        list(read_rows(path, "parquet"))
    with pytest.raises(DataError, match="cannot be read after row 0"):
        parse_all(path, "parquet")


def test_an_array_nested_too_deeply_is_rejected_without_exhausting_memory(tmp_path: Path) -> None:
    path = tmp_path / "deep.json"
    path.write_text('[{"a":' + "[" * 100_000 + "]" * 100_000 + "}]")
    with pytest.raises(DataError, match="row 1 is nested too deeply"):
        list(read_rows(path, "json"))


def test_long_values_are_read_in_linear_time(tmp_path: Path) -> None:
    row = {"prompt": "a" * 12_000_000, "chosen": "b", "rejected": "c"}
    path = write(tmp_path / "long.json", "json", [row, row])
    assert list(read_rows(path, "json")) == [row, row]


def test_numbers_larger_than_64_bits_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "numbers.json"
    path.write_text('[{"id": 12345678901234567890, "x": 1e999, "y": NaN, "z": [-Infinity, "NaN"]}]')
    assert list(read_rows(path, "json")) == [{"id": 12345678901234567890, "x": math.inf, "y": None, "z": [None, "NaN"]}]


@per_file
@given(content=rows, block=st.integers(1, 40))
def test_block_boundaries_do_not_change_how_an_array_is_read(
    tmp_path: Path, content: list[dict[str, Any]], block: int
) -> None:
    path = write(tmp_path / "rows.json", "json", content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("merlina.data.readers.json_files._Window._BLOCK", block)
        assert list(read_rows(path, "json")) == content


def test_tsv_is_separated_by_tabs_only(tmp_path: Path) -> None:
    path = tmp_path / "rows.tsv"
    path.write_text('prompt\tchosen, or not\n"1\t2"\ta,b;c|d\n')
    assert detect_format(path) == "tsv"
    assert list(read_rows(path, "tsv")) == [{"prompt": "1\t2", "chosen, or not": "a,b;c|d"}]
    assert count_rows(path, "tsv") == parse_all(path, "tsv") == 1


@pytest.mark.parametrize("file_format", ["json", "jsonl", "csv", "parquet"])
@pytest.mark.parametrize("start", [1, 2, 70, 150, 200, 201])
def test_reading_begins_at_any_row(tmp_path: Path, file_format: Any, start: int) -> None:
    content = [{"prompt": f"{number}\n", "chosen": "b"} for number in range(1, 201)]
    path = write(tmp_path / "rows", file_format, content)
    assert list(read_rows(path, file_format, start=start)) == content[start - 1 :]


def test_row_groups_before_the_first_row_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    content = [{"prompt": f"{number} " * 50, "chosen": "b"} for number in range(1, 301)]
    pq.write_table(pa.Table.from_pylist(content), path, row_group_size=100)
    first = pq.ParquetFile(path).metadata.row_group(0).column(0)
    damaged = bytearray(path.read_bytes())
    begin = first.dictionary_page_offset
    damaged[begin : begin + first.total_compressed_size] = bytes(first.total_compressed_size)
    path.write_bytes(damaged)
    assert list(read_rows(path, "parquet", start=101)) == content[100:]
    with pytest.raises(DataError, match="after row 0"):
        list(read_rows(path, "parquet", start=100))


def test_lines_before_the_first_row_are_not_parsed(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n\n{broken\n{"a": 3}\n')
    assert list(read_rows(path, "jsonl", start=3)) == [{"a": 3}]
