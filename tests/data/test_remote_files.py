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

from merlina.data.readers.data_files import DataFile, file_at, size_of
from merlina.data.readers.files import count_rows, detect_format, encoding_note, read_rows
from merlina.data.readers.row_limit import RowLimit
from merlina.domain.data_urls import AllowedUrls, RemoteFile
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


@pytest.fixture
def stores(host: DataHost, monkeypatch: pytest.MonkeyPatch) -> None:
    """Credentials for s3 and gs, whose requests go to the host."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", host.origin)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key-of-the-server")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret-of-the-server")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", host.origin)
    monkeypatch.setenv("FSSPEC_GS_TOKEN", "anon")


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


def test_parquet_is_refused_without_a_download_if_the_server_sends_no_ranges(host: DataHost) -> None:
    host.no_ranges = True
    host.files["pairs/large.parquet"] = JSONL * 20
    with pytest.raises(DataError, match="supports no range requests, which Parquet needs"):
        rows_of(remote(host, "pairs/large.parquet"))
    # The first MiB, and what is on its way when a connection is closed.
    assert host.bytes_sent < 16 * MIB < len(host.files["pairs/large.parquet"])


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


@pytest.mark.parametrize("ignores_conditions", [False, True])
@pytest.mark.parametrize("header", ["Last-Modified", "ETag"])
def test_a_file_that_is_replaced_while_it_is_read_is_an_error(
    host: DataHost, header: str, ignores_conditions: bool
) -> None:
    host.ignores_conditions = ignores_conditions
    host.headers_of_version = frozenset({header})
    for path in ("pairs/a.jsonl", "pairs/a.parquet"):
        file = remote(host, path)
        with file.open("rb") as stream:
            assert stream.read(1)
        host.replace_after = len(host.bodies)
        with pytest.raises(DataError, match="was replaced while it was being read; try again"):
            rows_of(file)
        host.replace_after = None


@pytest.mark.parametrize("no_ranges", [False, True], ids=["ranges", "no ranges"])
def test_a_longer_file_in_the_place_of_a_short_one_is_not_cut_at_its_size(host: DataHost, no_ranges: bool) -> None:
    host.no_ranges = no_ranges
    host.files["pairs/short.jsonl"] = JSONL[: JSONL.index(b"\n") + 1]
    file = remote(host, "pairs/short.jsonl")
    assert size_of(file) == len(host.files["pairs/short.jsonl"])
    host.files["pairs/short.jsonl"] *= 2
    host.replace_after = -1
    with pytest.raises(DataError, match="was replaced while it was being read; try again"):
        rows_of(file)


@pytest.mark.parametrize("no_ranges", [False, True], ids=["ranges", "no ranges"])
@pytest.mark.parametrize("scheme", ["http", "s3", "gs"])
def test_blocks_of_two_versions_are_never_mixed_also_if_reading_stops_early(
    host: DataHost, stores: None, scheme: str, no_ranges: bool
) -> None:
    host.no_ranges = no_ranges and scheme == "http"
    file = remote(host, "pairs/a.jsonl") if scheme == "http" else _stored(f"{scheme}://pairs/a.jsonl")
    rows = read_rows(file, "jsonl")
    assert next(rows) == ROWS[0]
    host.replace_after = len(host.bodies) - 1
    with pytest.raises(DataError, match="was replaced while it was being read; try again"):
        list(islice(rows, 6000))


def test_a_file_that_is_removed_while_it_is_read_is_missing(host: DataHost, stores: None) -> None:
    rows = read_rows(_stored("gs://pairs/a.jsonl"), "jsonl")
    assert next(rows) == ROWS[0]
    del host.files["pairs/a.jsonl"]
    with pytest.raises(DataError, match=r"There is no file at 'gs://pairs/a\.jsonl'"):
        list(islice(rows, 6000))


def test_a_weak_etag_is_not_named_in_requests(host: DataHost) -> None:
    host.weak_etags = True
    assert rows_of(remote(host, "pairs/a.jsonl")) == ROWS


def test_a_file_of_one_block_is_looked_up_once_more_at_its_end(host: DataHost) -> None:
    file = remote(host, "pairs/a.csv")
    assert rows_of(file) == rows_of(file)
    assert [request.split()[0] for request in host.asked] == ["HEAD", "GET", "HEAD"]


def test_a_file_that_becomes_shorter_is_an_error(host: DataHost) -> None:
    file = remote(host, "pairs/a.csv")
    assert size_of(file) == len(FILES["pairs/a.csv"])
    host.files["pairs/a.csv"] = FILES["pairs/a.csv"][:1000]
    with pytest.raises(DataError, match=r"sent 1,000 of [\d,]+ bytes, so that the file is incomplete; try again later"):
        rows_of(file)


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


@pytest.mark.parametrize("scheme", ["http", "s3", "gs"])
def test_a_server_that_is_busy_for_a_moment_is_asked_again(host: DataHost, stores: None, scheme: str) -> None:
    file = remote(host, "pairs/a.jsonl") if scheme == "http" else _stored(f"{scheme}://pairs/a.jsonl")
    # fsspec asks once more itself to look up a file over HTTP.
    refused = 2 if scheme == "http" else 1
    host.busy = refused
    rows = read_rows(file, "jsonl")
    assert next(rows) == ROWS[0]
    assert host.busy == 0
    host.busy = 1
    assert list(islice(rows, len(ROWS) - 1)) == ROWS[1:]
    assert host.busy == 0
    host.busy = refused
    assert list(rows) == []
    assert host.busy == 0


@pytest.mark.parametrize(
    ("scheme", "path"),
    [("http", "pairs/a.jsonl"), ("s3", "pairs/a.jsonl"), ("gs", "storage/v1/b/pairs/o/a.jsonl")],
    ids=["http", "s3", "gs"],
)
def test_a_server_that_stays_busy_is_asked_three_times(host: DataHost, stores: None, scheme: str, path: str) -> None:
    file = remote(host, "pairs/a.jsonl") if scheme == "http" else _stored(f"{scheme}://pairs/a.jsonl")
    host.statuses[path] = 503
    with pytest.raises(DataError, match=r"a\.jsonl' failed to respond \(status 503\); try again later"):
        rows_of(file)
    assert sum(f"/{path}" in request for request in host.asked) == (6 if scheme == "http" else 3)


def test_a_folder_is_allowed_in_any_spelling_of_its_address(host: DataHost) -> None:
    host.files |= {"datén/my data/~me/x.jsonl": JSONL, "a+b;c=%/x.jsonl": JSONL}
    for folder in ("datén/my data/~me", "dat%c3%a9n/my%20data/%7Eme", "a+b;c=%25", "a+b%3Bc%3D%"):
        for file in ("datén/my data/~me/x.jsonl", "dat%C3%A9n/my%20data/%7eme/x.jsonl", "a+b;c=%/x.jsonl"):
            allowed = AllowedUrls.of([f"{host.origin}/{folder}"]).entries
            if folder.startswith("a") == file.startswith("a"):
                assert rows_of(remote(host, file, *allowed)) == ROWS
            else:
                with pytest.raises(DataError, match="not an address that this server may read"):
                    remote(host, file, *allowed)
    with pytest.raises(DataError, match=r"There is no file at .*/a%2Bb"):
        rows_of(remote(host, "a%2Bb/x.jsonl"))


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
        for path, allowed in (("there", f"{other.origin}/dee"), ("file", other.origin), ("user", host.origin)):
            with pytest.raises(DataError) as refused:
                rows_of(remote(host, f"pairs/{path}", host.origin, allowed))
            refusals.append(refused.value.message)
        where = f"redirects to http://127.0.0.1:{other.port}, to an address that ALLOWED_DATA_URLS does not include"
        assert where in refusals[0]
        assert "redirects to an address that cannot be read: not http or https, or not valid" in refusals[1]
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


def test_objects_in_s3_are_read_with_the_credentials_of_the_process(host: DataHost, stores: None) -> None:
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


def test_objects_in_google_cloud_storage_are_read(host: DataHost, stores: None) -> None:
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
