"""Compressed files and text in other encodings are read like the same rows in plain UTF-8, or refused with a reason."""

from __future__ import annotations

import csv
import gzip
import io
import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from merlina.data.readers.files import count_rows, detect_format, encoding_note, parse_all, read_rows
from merlina.data.readers.row_limit import RowLimit
from merlina.errors import DataError

FORMATS: list[Any] = ["jsonl", "json", "csv", "tsv"]
SUFFIXES = [".gz", ".zst", ".zstd", ""]
ROWS = [{"prompt": f"Où {n}?", "chosen": 'say "café", or\n…', "rejected": "thé\t;|"} for n in range(40)]
per_file = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
PIECES = [b"[", b"]", b",", b'"', b"a", b"\t", b"\xe9", b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd", b"P*M\x18"]
western = st.text(st.characters(codec="latin-1", exclude_categories=("Cc",)), max_size=20)
anything = st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=20)


def as_text(file_format: str, rows: list[dict[str, Any]]) -> str:
    if file_format == "jsonl":
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    if file_format == "json":
        return json.dumps(rows, ensure_ascii=False)
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if file_format == "tsv" else ",")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def compress(data: bytes, suffix: str) -> bytes:
    if suffix == ".gz":
        return gzip.compress(data)
    return pa.Codec("zstd").compress(data).to_pybytes() if suffix else data


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def endless(path: Path, suffix: str, before: bytes, megabytes: int) -> Path:
    """Write a compressed file whose text ends with the given number of MiB of a single letter."""
    with pa.CompressedOutputStream(str(path), "gzip" if suffix == ".gz" else "zstd") as file:
        file.write(before)
        for _ in range(megabytes):
            file.write(b"x" * 1024**2)
    return path


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("file_format", FORMATS)
def test_a_compressed_file_is_read_like_its_content(tmp_path: Path, file_format: Any, suffix: str) -> None:
    data = compress(as_text(file_format, ROWS).encode(), suffix)
    named = write(tmp_path / f"pairs.{file_format}{suffix}", data)
    assert detect_format(named) == file_format
    # The content counts, so a name may lack the suffix, or keep it after the file was decompressed.
    nameless, misnamed = write(tmp_path / "rows", data), write(tmp_path / f"rows.{file_format}", data)
    decompressed = write(tmp_path / f"plain.{file_format}.gz", as_text(file_format, ROWS).encode())
    assert detect_format(decompressed) == detect_format(misnamed) == file_format
    for path in (named, nameless, misnamed, decompressed):
        assert list(read_rows(path, file_format)) == ROWS
        assert count_rows(path, file_format) == parse_all(path, file_format) == len(ROWS)
    if file_format.startswith("json"):
        assert detect_format(nameless) == file_format


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_several_archives_in_one_file_are_read_in_order(tmp_path: Path, suffix: str) -> None:
    parts = [compress(as_text("jsonl", ROWS[start : start + 10]).encode(), suffix) for start in (0, 10, 20, 30)]
    assert list(read_rows(write(tmp_path / f"x.jsonl{suffix}", b"".join(parts)), "jsonl")) == ROWS


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize("file_format", FORMATS)
def test_a_truncated_archive_is_an_error_wherever_it_ends(tmp_path: Path, file_format: Any, suffix: str) -> None:
    data = compress(as_text(file_format, ROWS).encode(), suffix)
    for size in (4, 5, 12, len(data) // 2, len(data) - 1):
        path = write(tmp_path / f"x.{file_format}{suffix}", data[:size])
        for read in (parse_all, count_rows):
            with pytest.raises(DataError, match=r"ends too early: it is incomplete\. Copy or compress it again"):
                read(path, file_format)


def test_a_damaged_archive_is_an_error(tmp_path: Path) -> None:
    data = bytearray(gzip.compress(as_text("jsonl", ROWS).encode()))
    data[-6] ^= 0xFF
    with pytest.raises(DataError, match=r"gzip file is damaged \(.*\)\. Copy or compress it again"):
        parse_all(write(tmp_path / "x.jsonl.gz", bytes(data)), "jsonl")
    with pytest.raises(DataError, match=r"x\.jsonl\.gz does not begin like a gzip file: it is damaged"):
        detect_format(write(tmp_path / "x.jsonl.gz", b"\0" + data[1:]))
    with pytest.raises(DataError, match="zstd file is damaged"):
        parse_all(write(tmp_path / "x.jsonl.zst", compress(b'{"a": 1}\n', ".zst") + b"more"), "jsonl")


@pytest.mark.parametrize("name", ["x.parquet.gz", "x"])
def test_parquet_inside_an_archive_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="Parquet file is inside a gzip file; decompress it"):
        detect_format(write(tmp_path / name, gzip.compress(b"PAR1" + b"\0" * 100)))


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize(
    ("file_format", "before"), [("jsonl", b'{"a": "'), ("json", b'[{"a": "'), ("csv", b"a,b\n1,"), ("tsv", b'a\n"')]
)
def test_a_decompression_bomb_of_one_row_is_refused_at_the_row_limit(
    tmp_path: Path, file_format: Any, before: bytes, suffix: str
) -> None:
    path = endless(tmp_path / f"bomb.{file_format}{suffix}", suffix, before, 20)
    for read in (parse_all, count_rows):
        with pytest.raises(DataError, match=r"(line 1|line 2|row 1) is larger than 1 MiB"):
            read(path, file_format, RowLimit(1024**2))


def test_a_file_that_decompresses_to_200_times_its_size_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl.zst"
    with pa.CompressedOutputStream(str(path), "zstd") as file:
        for _ in range(280):
            file.write((b'{"a": "' + b"x" * 8182 + b'"}\n') * 128)
    with pytest.raises(DataError, match="decompresses to more than 200 times its size, which is refused"):
        count_rows(path, "jsonl")


def test_a_bomb_takes_little_memory(tmp_path: Path) -> None:
    path = endless(tmp_path / "bomb.jsonl.zst", ".zst", b'{"a": "', 1000)
    code = f"""
from pathlib import Path
from merlina.data.readers.files import parse_all
from merlina.errors import DataError
try:
    parse_all(Path({str(path)!r}), "jsonl")
except DataError as error:
    print(error.message)
"""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_DATA, (400 * 1024**2, 400 * 1024**2))

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, preexec_fn=limit)
    assert "line 1 is larger than 16 MiB" in done.stdout, done.stderr


@per_file
@given(
    content=st.lists(st.fixed_dictionaries({"a": anything, "b": anything}), min_size=1, max_size=8),
    file_format=st.sampled_from(FORMATS),
    codec=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"]),
    suffix=st.sampled_from(SUFFIXES),
)
def test_unicode_encodings_are_detected(
    tmp_path: Path, content: list[dict[str, str]], file_format: Any, codec: str, suffix: str
) -> None:
    content = [{f"column {key}": value for key, value in row.items()} for row in content]
    path = write(tmp_path / "rows", compress(as_text(file_format, content).encode(codec), suffix))
    assert list(read_rows(path, file_format)) == content
    note = encoding_note(path, file_format)
    assert (note is None) == codec.startswith("utf-8")


@per_file
@given(
    content=st.lists(st.fixed_dictionaries({"a": western, "b": western}), min_size=1, max_size=8),
    file_format=st.sampled_from(FORMATS),
    encoding=st.sampled_from(["utf-8", "utf-16", "latin-1"]),
)
def test_a_given_encoding_is_obeyed(
    tmp_path: Path, content: list[dict[str, str]], file_format: Any, encoding: Any
) -> None:
    path = write(tmp_path / "rows", as_text(file_format, content).encode(encoding))
    assert list(read_rows(path, file_format, encoding=encoding)) == content
    assert count_rows(path, file_format, encoding=encoding) == len(content)


@pytest.mark.parametrize("file_format", FORMATS)
def test_cp1252_is_detected_and_reported(tmp_path: Path, file_format: Any) -> None:
    rows = [{"prompt": "Où?", "chosen": "“Là-bas” – ça coûte 5 €", "rejected": "no"}, {"prompt": "a", "chosen": "b"}]
    rows[1]["rejected"] = "c"
    path = write(tmp_path / "rows", as_text(file_format, rows).encode("cp1252"))
    assert list(read_rows(path, file_format)) == rows
    note = encoding_note(path, file_format)
    assert note is not None
    assert note.startswith("The file is read as cp1252: 1 of its first ")
    assert note.endswith("contains characters that are not UTF-8. Set the source's encoding if that is wrong")


FOREIGN = {
    "damaged UTF-8": ("Größe, Länge, Höhe".encode() + b"\xe9", "invalid continuation byte"),
    "cp1251": ("Почему небо голубое?".encode("cp1251"), "invalid"),
    "GBK": ("天空为什么是蓝色的".encode("gbk"), "invalid"),
    "Shift-JIS": ("空はなぜ青いの、".encode("shift-jis"), "invalid"),
    "a binary byte": (b"\xff", "invalid start byte"),
}


@pytest.mark.parametrize(("text", "reason"), FOREIGN.values(), ids=FOREIGN)
def test_text_of_an_unknown_encoding_is_not_guessed(tmp_path: Path, text: bytes, reason: str) -> None:
    path = write(tmp_path / "x.jsonl", b'{"a": 1}\n{"prompt": "' + text + b'"}\n')
    hint = "Save the file as UTF-8, or set the source's encoding, for example to cp1252"
    with pytest.raises(DataError, match=rf"line 2 is not UTF-8 text \({reason}.*\)\. {hint}"):
        parse_all(path, "jsonl")
    path.write_bytes(b"a,b\nx," + text + b"\n")
    with pytest.raises(DataError, match=rf"line 2 is not UTF-8 text \({reason}.*\)\. {hint}"):
        parse_all(path, "csv")
    path.write_bytes(b'[{"a": 1},\n {"b": "' + text + b'"}]')
    with pytest.raises(DataError, match=rf"not UTF-8 text at line 2, column \d+ \({reason}.*\)\. {hint}"):
        parse_all(path, "json")


@pytest.mark.parametrize("file_format", ["jsonl", "csv", "tsv"])
def test_an_encoding_does_not_change_midway(tmp_path: Path, file_format: Any) -> None:
    """The first MiB decides; text that contradicts it is refused with its line, until the user sets the encoding."""
    rows = [{"a": "plain" * 20, "b": "text"}] * 12_000 + [{"a": "café", "b": "x"}]
    path = write(tmp_path / "rows", as_text(file_format, rows).encode("cp1252"))
    line = 12_001 if file_format == "jsonl" else 12_002
    for suffix in ("", ".gz"):
        path.write_bytes(compress(as_text(file_format, rows).encode("cp1252"), suffix))
        with pytest.raises(DataError, match=rf"line {line} is not UTF-8 text .* set the source's encoding"):
            parse_all(path, file_format)
        assert list(read_rows(path, file_format, encoding="cp1252")) == rows
    rows = [{"a": "café", "b": "x"}, *rows[:-1], {"a": "\x81", "b": "x"}]
    path.write_bytes(as_text(file_format, rows).encode("latin-1"))
    with pytest.raises(DataError, match=rf"line {line + 1} is not cp1252 text \(character maps to <undefined>\)"):
        parse_all(path, file_format)
    assert list(read_rows(path, file_format, encoding="latin-1")) == rows


def test_a_wrong_encoding_is_an_error_with_its_line(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", '{"a": 1}\n{"a": "é"}\n'.encode("cp1252"))
    with pytest.raises(DataError, match="line 2 is not UTF-8 text"):
        list(read_rows(path, "jsonl", encoding="utf-8"))
    path.write_bytes('{"a": 1}\n'.encode("utf-16") + b"\x00\xd8\n\x00")
    with pytest.raises(DataError, match=r"line 2 is not UTF-16 \(little-endian\) text"):
        list(read_rows(path, "jsonl"))


@pytest.mark.parametrize("file_format", FORMATS)
@pytest.mark.parametrize("mark", [b"\xef\xbb\xbf" * 2, "\ufeff\ufeff".encode("utf-16-le")])
def test_repeated_byte_order_marks_are_skipped(tmp_path: Path, file_format: Any, mark: bytes) -> None:
    codec = "utf-8" if mark.startswith(b"\xef") else "utf-16-le"
    path = write(tmp_path / "rows", mark + as_text(file_format, ROWS).encode(codec))
    assert list(read_rows(path, file_format)) == ROWS


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_line_ends_and_numbers_survive_every_layer(tmp_path: Path, end: str) -> None:
    text = end.join(['{"a": 1}', "", '{"a": 2}', "oops"])
    for codec in ("utf-8", "utf-16"):
        for suffix in SUFFIXES:
            path = write(tmp_path / "x.jsonl", compress(text.encode(codec), suffix))
            with pytest.raises(DataError, match="line 4 is not valid JSON"):
                parse_all(path, "jsonl")


@settings(per_file, max_examples=150)
@given(
    data=st.one_of(
        st.binary(max_size=80),
        st.lists(
            st.sampled_from(
                [b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff", b"\0", b"{\0", b"\0{", b"\r", b"\n", b'{"a": 1}', *PIECES]
            ),
            max_size=12,
        ).map(b"".join),
    ),
    suffix=st.sampled_from(SUFFIXES),
    cut=st.integers(0, 40),
    flip=st.tuples(st.integers(0, 200), st.integers(0, 255)),
)
def test_no_bytes_break_a_reader(tmp_path: Path, data: bytes, suffix: str, cut: int, flip: tuple[int, int]) -> None:
    """Whatever a file contains, readers agree on its rows or raise DataError."""
    content = bytearray(compress(data, suffix))
    content = content[: len(content) - cut] or content
    if content:
        content[flip[0] % len(content)] ^= flip[1]
    path = write(tmp_path / "rows", bytes(content))
    for file_format in FORMATS:
        try:
            rows = list(read_rows(path, file_format))
        except DataError:
            continue
        assert count_rows(path, file_format) == len(rows)
    try:
        found = detect_format(path)
        assert found == detect_format(path, "rows")
        encoding_note(path, found)
    except DataError:
        pass
