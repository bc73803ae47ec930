"""Files at addresses: the same rows as from a disk, in blocks, and never a part of a file as if it were all of it."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import traceback
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from merlina.data.readers.data_files import DataFile, file_at
from merlina.data.readers.files import count_rows, detect_format, encoding_note, read_rows
from merlina.data.readers.row_limit import RowLimit
from merlina.domain.data_urls import RemoteFile
from merlina.domain.units import MIB
from merlina.errors import DataError
from tests.data_host import DataHost, data_host

ROWS = [{"prompt": f"What is {n}?", "chosen": "It is." * 40, "rejected": "No." * 40} for n in range(9000)]
JSONL = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
assert len(JSONL) > 3 * MIB


def parquet(rows: list[dict[str, Any]]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink, row_group_size=2000, compression="none", use_dictionary=False)
    return bytes(sink.getvalue())


FILES = {
    "pairs/a.jsonl": JSONL,
    "pairs/sub/a b.jsonl.gz": gzip.compress(JSONL),
    "pairs/a.json": json.dumps(ROWS).encode(),
    "pairs/a.csv": b"prompt,chosen,rejected\n" + b"".join(b"p%d,c,r\n" % n for n in range(9000)),
    "pairs/a.parquet": parquet(ROWS),
    "pairs/cp1252.csv": "prompt,chosen\nCafé,thé\n".encode("cp1252"),
    "pairs/unnamed": JSONL,
    "pairs/empty.jsonl": b"",
}


@pytest.fixture
def host() -> Iterator[DataHost]:
    with data_host(dict(FILES)) as host:
        yield host


def remote(host: DataHost, path: str, *allowed: str) -> DataFile:
    return file_at(RemoteFile(f"{host.origin}/{path}", allowed or (host.origin,)))


def rows_of(file: DataFile) -> list[dict[str, Any]]:
    return list(read_rows(file, detect_format(file)))


@pytest.mark.parametrize("no_ranges", [False, True], ids=["ranges", "no ranges"])
@pytest.mark.parametrize("path", [path for path in FILES if not path.endswith("parquet")])
def test_rows_are_those_of_the_same_file_on_disk(host: DataHost, tmp_path: Path, path: str, no_ranges: bool) -> None:
    host.no_ranges = no_ranges
    local = tmp_path / Path(path).name
    local.write_bytes(FILES[path])
    there = remote(host, path.replace(" ", "%20"))
    assert there.name == local.name
    if FILES[path]:
        assert detect_format(there) == detect_format(local)
        assert encoding_note(there, detect_format(there)) == encoding_note(local, detect_format(local))
    assert rows_of(there) == rows_of(local)


def test_parquet_is_read_by_ranges(host: DataHost) -> None:
    file = remote(host, "pairs/a.parquet")
    assert rows_of(file) == ROWS
    sent = host.bytes_sent
    assert count_rows(remote(host, "pairs/a.parquet"), "parquet") == 9000
    assert list(islice(read_rows(remote(host, "pairs/a.parquet"), "parquet", start=8999), 3)) == ROWS[-2:]
    assert host.bytes_sent - sent < len(FILES["pairs/a.parquet"]) + 4 * MIB
    host.no_ranges = True
    with pytest.raises(DataError, match="supports no range requests, which Parquet needs"):
        rows_of(remote(host, "pairs/a.parquet"))


def test_the_first_rows_need_the_beginning_only_and_it_is_requested_once(host: DataHost) -> None:
    host.files["pairs/large.jsonl"] = JSONL * 20
    file = remote(host, "pairs/large.jsonl")
    assert list(islice(read_rows(file, detect_format(file)), 20)) == ROWS[:20]
    encoding_note(file, "jsonl")
    assert len(host.bodies) == 1
    assert host.bytes_sent < 2 * MIB
    host.no_ranges = True
    assert list(islice(read_rows(remote(host, "pairs/large.jsonl"), "jsonl"), 20)) == ROWS[:20]
    # What is on its way when the connection is closed comes on top.
    assert host.bytes_sent < 16 * MIB < len(host.files["pairs/large.jsonl"])


@pytest.mark.parametrize("no_ranges", [False, True], ids=["ranges", "no ranges"])
def test_reading_continues_where_a_connection_broke(host: DataHost, no_ranges: bool) -> None:
    host.no_ranges, host.cuts, host.cut_above = no_ranges, 1, 2 * MIB
    assert rows_of(remote(host, "pairs/a.jsonl")) == ROWS
    assert host.cuts == 0
    ranges = [wanted for _, wanted in host.bodies]
    assert no_ranges or len(set(ranges)) == len(ranges) - 1


@pytest.mark.parametrize("no_ranges", [False, True], ids=["ranges", "no ranges"])
def test_a_file_that_breaks_off_is_an_error(host: DataHost, no_ranges: bool) -> None:
    host.no_ranges, host.cuts, host.cut_above = no_ranges, 99, 2 * MIB
    rows = read_rows(remote(host, "pairs/a.jsonl"), "jsonl")
    with pytest.raises(DataError, match=r"broke; try again later \(at byte 1,114,112 of"):
        list(rows)


def test_a_file_that_is_replaced_while_it_is_read_is_an_error(host: DataHost) -> None:
    for path in ("pairs/a.jsonl", "pairs/a.parquet"):
        file = remote(host, path)
        with file.open("rb") as stream:
            assert stream.read(1)
        host.replace_after = len(host.bodies)
        with pytest.raises(DataError, match="was replaced while it was being read; try again"):
            rows_of(file)
        host.replace_after = None


def test_a_server_that_states_no_size_is_refused(host: DataHost) -> None:
    host.no_size = True
    with pytest.raises(DataError, match="does not state the size of the file"):
        rows_of(remote(host, "pairs/a.jsonl"))


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (404, "There is no file at"),
        (401, "is denied: https:// addresses are read without credentials"),
        (403, "is denied: https:// addresses are read without credentials"),
        (400, r"refused the request \(status 400\)"),
        (503, r"failed to respond \(status 503\)"),
    ],
)
def test_a_status_is_reported_in_words(host: DataHost, status: int, message: str) -> None:
    host.statuses["pairs/a.jsonl"] = status
    with pytest.raises(DataError, match=message):
        rows_of(remote(host, "pairs/a.jsonl"))


def test_redirects_lead_to_allowed_addresses_only(host: DataHost) -> None:
    with data_host({"deep/a.jsonl": JSONL}) as other:
        host.redirects |= {
            "pairs/here": "/pairs/a.jsonl",
            "pairs/there": f"{other.origin}/deep/a.jsonl?X-Amz-Signature=s3cret",
            "pairs/user": f"http://user:s3cret@127.0.0.1:{other.port}/deep/a.jsonl",
            "pairs/file": "file:///etc/passwd",
            "pairs/dots": "/pairs/%2e%2e/x",
            "pairs/loop": "/pairs/loop",
        }
        assert rows_of(remote(host, "pairs/here")) == ROWS
        assert rows_of(remote(host, "pairs/there", host.origin, f"{other.origin}/deep")) == ROWS
        sent = len(other.asked)
        refusals = []
        for path, allowed in (("there", f"{other.origin}/dee"), ("file", other.origin)):
            with pytest.raises(DataError) as refused:
                rows_of(remote(host, f"pairs/{path}", host.origin, allowed))
            refusals.append(refused.value.message)
        assert "redirects to another address" in refusals[0]
        assert "ALLOWED_DATA_URLS" in refusals[0]
        assert not [text for text in refusals if "s3cret" in text]
        assert len(other.asked) == sent
        # A signature stays out of the message when the target itself refuses it.
        other.statuses["deep/a.jsonl"] = 403
        with pytest.raises(DataError, match="is denied") as denied:
            rows_of(remote(host, "pairs/there", host.origin, other.origin))
        assert "s3cret" not in "".join(traceback.format_exception(denied.value))
        assert str(other.port) not in denied.value.message
    with pytest.raises(DataError, match="redirects too often"):
        rows_of(remote(host, "pairs/loop"))


def test_the_worker_refuses_an_address_that_is_not_allowed(host: DataHost) -> None:
    for allowed in ("https://127.0.0.1", f"{host.origin}/other", "s3://pairs"):
        with pytest.raises(DataError, match="not an address that this server may read; ALLOWED_DATA_URLS"):
            remote(host, "pairs/a.jsonl", allowed)
    assert host.asked == []


def test_a_row_has_the_same_limit_as_in_a_file_on_disk(host: DataHost) -> None:
    host.files["pairs/wide.jsonl"] = json.dumps({"prompt": "x" * 3 * MIB}).encode()
    with pytest.raises(DataError, match="line 1 is larger than 2 MiB, the limit for one row"):
        list(read_rows(remote(host, "pairs/wide.jsonl"), "jsonl", RowLimit.of_megabytes(2)))


def test_a_host_that_cannot_be_reached_is_reported() -> None:
    with data_host() as gone:
        pass
    with pytest.raises(DataError, match="cannot be reached; check the address and the network"):
        rows_of(remote(gone, "pairs/a.jsonl"))


def test_objects_in_s3_are_read_with_the_credentials_of_the_process(
    host: DataHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", host.origin)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key-of-the-server")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret-of-the-server")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    for path in ("a.jsonl", "a.parquet", "sub/a b.jsonl.gz"):
        assert rows_of(_stored(f"s3://pairs/{path}")) == ROWS
    assert all("Credential=key-of-the-server/" in given for given in host.authorizations)
    with pytest.raises(DataError, match=r"There is no file at 's3://pairs/none\.jsonl'"):
        rows_of(_stored("s3://pairs/none.jsonl"))
    host.statuses["pairs/a.jsonl"] = 403
    with pytest.raises(DataError, match=r"'s3://pairs/a\.jsonl' is denied: the server's process needs credentials"):
        rows_of(_stored("s3://pairs/a.jsonl"))
    host.cuts, host.cut_above = 1, 2 * MIB
    assert rows_of(_stored("s3://pairs/unnamed")) == ROWS
    assert host.cuts == 0


def test_objects_in_google_cloud_storage_are_read(host: DataHost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", host.origin)
    monkeypatch.setenv("FSSPEC_GS_TOKEN", "anon")
    for path in ("a.jsonl", "a.parquet", "sub/a b.jsonl.gz"):
        assert rows_of(_stored(f"gs://pairs/{path}")) == ROWS
    with pytest.raises(DataError, match=r"There is no file at 'gs://pairs/none\.jsonl'"):
        rows_of(_stored("gs://pairs/none.jsonl"))


def _stored(url: str) -> DataFile:
    return file_at(RemoteFile(url, (url.rpartition("pairs")[0] + "pairs",)))


@pytest.mark.parametrize(
    ("url", "package"), [("https://h/a", "aiohttp"), ("s3://b/a", "s3fs"), ("gs://b/a", "gcsfs")], ids=str
)
def test_a_missing_package_is_named_with_the_extra_that_has_it(url: str, package: str) -> None:
    program = f"""
import sys
sys.modules[{package!r}] = None  # as if it were not installed
from merlina.data.readers.data_files import file_at
from merlina.domain.data_urls import RemoteFile
file_at(RemoteFile({url!r}, ({url.rpartition("/")[0]!r},)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert f"need the package {package}, which is not installed" in done.stderr
    assert "pip install 'merlina[remote]'" in done.stderr
