"""Addresses of data files: their canonical form, what is refused, and what the setting allows."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from merlina.domain.data_urls import AllowedUrls, DataUrl
from merlina.errors import ForbiddenError
from merlina.paths import AllowedPaths
from merlina.schemas.datasets.config import DatasetConfig
from merlina.schemas.datasets.sources import DatasetSource
from merlina.schemas.parsing.validation_errors import describe
from merlina.settings import Settings


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("HTTPS://Data.Example.COM:443/A/b.jsonl", "https://data.example.com/A/b.jsonl"),
        (" https://h:8443/a%20b.csv ", "https://h:8443/a%20b.csv"),
        ("https://h:/a", "https://h/a"),
        ("S3://Bucket/key of mine.jsonl", "s3://bucket/key of mine.jsonl"),
        ("gs://b/é.parquet", "gs://b/é.parquet"),
        ("gs://b/%7E %e9.parquet", "gs://b/%7E %e9.parquet"),
        ("https://h/datén/my data", "https://h/dat%C3%A9n/my%20data"),
        ("https://h/%7eme/dat%c3%a9n%2fx", "https://h/~me/dat%C3%A9n%2Fx"),
        ("https://h/100%/%zz+%2b%e9", "https://h/100%25/%25zz+%2B%E9"),
        ("https://h/a%3b%21;!%25%37e", "https://h/a;!;!%257e"),
        ("http://127.0.0.1:80/a", "http://127.0.0.1/a"),
        ("http://[::1]:9000/a", "http://[::1]:9000/a"),
    ],
)
def test_an_address_has_one_canonical_form(text: str, canonical: str) -> None:
    assert DatasetSource(source_type="url", url=text).url == canonical
    assert DatasetSource(source_type="url", url=text).name == canonical
    assert str(DataUrl.parse(canonical)) == canonical


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("https://user:s3cret@h/a", "contains a user name or password"),
        ("https://allowed@s3cret.example/a", "contains a user name or password"),
        ("https://h/a?X-Amz-Signature=s3cret", "has a query string or a fragment"),
        ("https://h/a?", "has a query string or a fragment"),
        ("https://h/a#s3cret", "has a query string or a fragment"),
        ("https://h\\@s3cret/a", "contains a backslash"),
        ("https://h/a\n/s3cret", "contains a backslash or a control character"),
        ("https://h/%0d%0as3cret", "a control character in its path"),
        ("https://h/x/../s3cret", r"the path segment \. or \.\."),
        ("https://h/x/%2e%2E/s3cret", r"the path segment \. or \.\."),
        ("https://h/x/%252e%252e/s3cret", r"the path segment \. or \.\."),
        ("https://h/x/..%2fs3cret", r"the path segment \. or \.\."),
        ("https://h/x/..;/s3cret", r"the path segment \. or \.\."),
        ("https://h/x/%2e%2e;p=1/s3cret", r"the path segment \. or \.\."),
        ("https://h/x/..%3b/s3cret", r"the path segment \. or \.\."),
        ("https://h/x/.%3B;/s3cret", r"the path segment \. or \.\."),
        ("s3://b/../s3cret", r"the path segment \. or \.\."),
        ("file:///etc/s3cret", "should begin with https://, s3:// or gs://"),
        ("/etc/s3cret", "should begin with https://"),
        ("//h/s3cret", "should begin with https://"),
        ("ftp://h/s3cret", "should begin with https://"),
        ("simplecache::https://h/s3cret", "should begin with https://"),
        ("zip://s3cret.csv::https://h/x.zip", "is not a valid address"),
        ("https://h/x.zip::file:///s3cret", "contains ::"),
        ("https://h/x%3a%3as3cret", "contains ::"),
        ("http://s3cret.example/a", "is not encrypted"),
        ("http://127.0.0.1.example/s3cret", "is not encrypted"),
        ("https://exämple.com/s3cret", "not ASCII"),
        ("https://①.com/s3cret", "not ASCII"),
        ("https://h%2eexample/s3cret", "not ASCII"),
        ("https:///s3cret", "has no host"),
        ("https:h/s3cret", "has no host"),
        ("https://h:99999/s3cret", "is not a valid address"),
        ("https://[::1/s3cret", "is not a valid address"),
        ("s3://b:80/s3cret", "has a port"),
        ("https://h", "names no file"),
        ("s3://bucket/folder/", "names no file"),
        ("https://h/" + "s3cret" * 400, "is longer than 2,000 characters"),
        ("https://h/" + "é" * 400 + "s3cret", "is longer than 2,000 characters"),
    ],
)
def test_what_is_ambiguous_or_may_hold_a_secret_is_refused_without_being_repeated(text: str, problem: str) -> None:
    with pytest.raises(ValidationError) as refused:
        DatasetConfig.model_validate({"source": {"source_type": "url", "url": text}})
    (finding,) = describe(refused.value, DatasetConfig)
    assert finding.field == "source.url"
    with pytest.raises(ValueError, match=problem):
        raise ValueError(finding.message)
    assert "s3cret" not in finding.message


def test_a_source_of_this_kind_needs_its_address() -> None:
    with pytest.raises(ValidationError, match="required by source_type 'url'"):
        DatasetSource(source_type="url")


def test_an_entry_allows_its_host_or_what_is_below_its_path() -> None:
    allowed = AllowedUrls.of(["https://Data.example.com/", "https://h:8443/d", "s3://bucket/team/", "gs://b/one.csv"])
    cases = {
        "https://data.example.com/a/b": True,
        "https://data.example.com:443/a": True,
        "https://data.example.com:444/a": False,
        "https://data.example.com.evil/a": False,
        "https://sub.data.example.com/a": False,
        "https://data.example.com./a": False,
        "https://h:8443/d/a": True,
        "https://h:8443/dd/a": False,
        "https://h/d/a": False,
        "https://h:8443//d/a": False,
        "s3://bucket/team/a": True,
        "s3://bucket/teams": False,
        "s3://bucket/Team/a": False,
        "gs://bucket/team/a": False,
        "gs://b/one.csv": True,
        "gs://b/one.csv2": False,
        "http://localhost/a": False,
    }
    assert {url: allowed.allows(DataUrl.parse(url)) for url in cases} == cases
    assert not any(AllowedUrls().allows(DataUrl.parse(url)) for url in cases)


def test_the_setting_is_a_list_of_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Settings(_env_file=None).allowed_urls == AllowedUrls()
    monkeypatch.setenv("ALLOWED_DATA_URLS", "https://H:443, s3://bucket/team/")
    assert Settings(_env_file=None).allowed_urls.entries == ("https://h", "s3://bucket/team")
    for entry, problem in (
        ("file:///", "entry 2 should begin with"),
        ("https://user:s3cret@h", "entry 2 contains a user name"),
        ("https://", "entry 2 has no host"),
        ("http://h", "entry 2 is not encrypted"),
    ):
        monkeypatch.setenv("ALLOWED_DATA_URLS", f"https://h,{entry}")
        with pytest.raises(ValidationError, match=problem):
            Settings(_env_file=None)


def test_an_address_that_is_not_allowed_is_refused_with_the_name_of_the_setting() -> None:
    allowed = AllowedPaths((), urls=AllowedUrls(("https://h/team",)))
    assert allowed.remote_file("https://h/team/a").url == "https://h/team/a"
    with pytest.raises(ForbiddenError, match=r"'https://h/a' is not .* ALLOWED_DATA_URLS sets them, .* to https://h$"):
        allowed.remote_file("https://h/a")
