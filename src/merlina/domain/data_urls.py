"""Addresses of data files, and which of them a server allows (docs/security.md, "Accessible addresses")."""

from __future__ import annotations

import re
import string
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import SplitResult, quote, unquote, urlsplit

_DEFAULT_PORTS = {"https": 443, "http": 80}
_STORES = ("s3", "gs")
_THIS_MACHINE = ("127.0.0.1", "[::1]", "localhost")
_HOST = re.compile(r"[a-z0-9._-]+|\[[0-9a-f:.]+\]")
_FORBIDDEN = re.compile(r"[\x00-\x1f\x7f\\]")
_MAX_LENGTH = 2000
# Characters of a path that HTTP clients send as they are, even if an address encodes them.
_PLAIN = f"{string.ascii_letters}{string.digits}-._~!$&'()*,;=:@"
_ESCAPE = re.compile(r"%([0-9A-Fa-f]{2})?")


@dataclass(frozen=True)
class DataUrl:
    """An address in its canonical form: scheme and host in lower case, no default port, no credentials.

    `host` is the bucket for s3 and gs; `path` is empty or begins with a slash. The path of http and https is
    percent-encoded as it is sent; that of s3 and gs is the key as it was written.
    """

    scheme: str
    host: str
    path: str

    @staticmethod
    def parse(text: str) -> DataUrl:
        """Return the address. Raises ValueError; its message never repeats the text: it may contain credentials.

        Refuses addresses that can be read in two ways (dot segments, also encoded ones; hosts that are not ASCII) or
        may contain a secret (user names, passwords and query strings).
        """
        text = text.strip(" ")
        _check_length(text)
        if _FORBIDDEN.search(text):
            raise ValueError("contains a backslash or a control character")
        try:
            parts = urlsplit(text)
            port = parts.port
        except ValueError:
            raise ValueError("is not a valid address") from None
        if parts.scheme not in (*_DEFAULT_PORTS, *_STORES):
            raise ValueError("should begin with https://, s3:// or gs://")
        if "@" in parts.netloc:
            raise ValueError(
                "contains a user name or password, which messages and logs would show; leave it out, and give the "
                "credentials to the process that reads the file"
            )
        if "?" in text or "#" in text:
            raise ValueError(
                "has a query string or a fragment, which may contain a signature that messages and logs would show; "
                "use an address without one, or a copy of the file"
            )
        url = DataUrl(parts.scheme, _host(parts, port), _path(parts))
        # It is parsed again where it is read, and may be longer than the text.
        _check_length(str(url))
        return url

    def __str__(self) -> str:
        return f"{self.scheme}://{self.host}{self.path}"

    @property
    def is_in_store(self) -> bool:
        """Whether it names an object in a bucket."""
        return self.scheme in _STORES

    @property
    def file_name(self) -> str:
        """The last part of the path, decoded."""
        name = PurePosixPath(self.path).name
        return name if self.is_in_store else unquote(name)


def _check_length(text: str) -> None:
    """Raise ValueError for an address that is too long."""
    if len(text) > _MAX_LENGTH:
        raise ValueError(f"is longer than {_MAX_LENGTH:,} characters")


def _host(parts: SplitResult, port: int | None) -> str:
    """Return the host, with a port that is not the default one. Raises ValueError."""
    host = parts.netloc.lower().removesuffix(f":{port}" if port is not None else ":")
    if not _HOST.fullmatch(host):
        raise ValueError("has no host, or one that is not ASCII; write it in its ASCII form (xn--…)")
    if parts.scheme == "http" and host not in _THIS_MACHINE:
        raise ValueError("is not encrypted; http:// is for this machine only, use https://")
    if port is None or port == _DEFAULT_PORTS.get(parts.scheme):
        return host
    if parts.scheme in _STORES:
        raise ValueError(f"has a port, but {parts.scheme}:// is followed by the name of a bucket")
    return f"{host}:{port}"


def _path(parts: SplitResult) -> str:
    """Return the canonical path. Raises ValueError for one that a server could read as another path."""
    decoded, before = parts.path, ""
    while decoded != before:
        decoded, before = unquote(decoded), decoded
    # Some servers take what follows a semicolon for a parameter: to them, "..;" is the folder above.
    if any(part.split(";")[0] in (".", "..") for part in decoded.split("/")):
        raise ValueError("contains the path segment . or ..; write the path without it")
    if "::" in decoded or _FORBIDDEN.search(decoded):
        raise ValueError("contains ::, a backslash or a control character in its path")
    return parts.path if parts.scheme in _STORES else _percent_encoded(parts.path)


def _percent_encoded(path: str) -> str:
    """Return the path as HTTP clients send it: "/my data%7e%2f" becomes "/my%20data~%2F"."""
    return _ESCAPE.sub(_canonical_escape, quote(path, safe=f"/+%{_PLAIN}"))


def _canonical_escape(found: re.Match[str]) -> str:
    if found[1] is None:  # a percent sign that encodes nothing
        return "%25"
    return character if (character := unquote(found[0])) in _PLAIN else found[0].upper()


@dataclass(frozen=True)
class AllowedUrls:
    """The addresses that a server may read: each entry allows one host or bucket, or what is below a path of it."""

    entries: tuple[str, ...] = ()

    @staticmethod
    def of(texts: Sequence[str]) -> AllowedUrls:
        """Return the entries in canonical form. Raises ValueError, which names an invalid entry by its number."""
        entries = []
        for number, text in enumerate(texts, start=1):
            try:
                entries.append(str(DataUrl.parse(text)).rstrip("/"))
            except ValueError as error:
                raise ValueError(f"entry {number} {error}") from None
        return AllowedUrls(tuple(entries))

    def with_hosts_of(self, urls: Iterable[str]) -> AllowedUrls:
        """Return entries that also allow the hosts and buckets of valid addresses."""
        parsed = map(DataUrl.parse, urls)
        return AllowedUrls((*self.entries, *(f"{url.scheme}://{url.host}" for url in parsed)))

    def allows(self, url: DataUrl) -> bool:
        """Return whether an entry has the same scheme, host and port, and the path or a folder above it."""
        return any(str(url) == entry or str(url).startswith(f"{entry}/") for entry in self.entries)

    def refusal(self, url: DataUrl) -> str | None:
        """Return why the address may not be read; None if it may."""
        if self.allows(url):
            return None
        return (
            f"{str(url)!r} is not an address that this server may read; ALLOWED_DATA_URLS sets them, for example to "
            f"{url.scheme}://{url.host}"
        )


@dataclass(frozen=True)
class RemoteFile:
    """A file at an address, with the addresses that the settings allowed when it was named."""

    url: str
    allowed: tuple[str, ...]


# Where a file with rows is: on this machine, or at an address.
FileLocation = Path | RemoteFile
