"""Describe the errors of fsspec and the libraries behind it.

The texts of these errors are never shown, since they may contain addresses with signatures. Kinds of errors are
recognized by name, because the libraries are optional.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from merlina.domain.data_urls import DataUrl
from merlina.errors import MerlinaError

_CREDENTIALS = {
    "s3": "the server's process needs credentials for it, such as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in its "
    "environment, or FSSPEC_S3_ANON=true if the bucket is public",
    "gs": "the server's process needs credentials for it, such as GOOGLE_APPLICATION_CREDENTIALS in its environment",
}
_NO_CREDENTIALS = {
    "CredentialRetrievalError", "DefaultCredentialsError", "NoCredentialsError", "PartialCredentialsError",
    "RefreshError", "TokenRetrievalError",
}  # fmt: skip
_TIMEOUTS = {"TimeoutError", "ConnectTimeoutError", "ReadTimeoutError", "Timeout"}
_CERTIFICATE = {"ClientConnectorCertificateError", "ClientConnectorSSLError", "SSLError", "SSLCertVerificationError"}
_UNREACHABLE = {"ClientConnectorError", "EndpointConnectionError", "ProxyConnectionError", "ConnectionRefusedError"}
_BROKEN = {
    "ClientPayloadError", "ServerDisconnectedError", "ClientOSError", "IncompleteRead", "IncompleteReadError",
    "ResponseStreamingError", "ConnectionClosedError", "HTTPClientError", "ChunkedEncodingError", "ConnectionError",
}  # fmt: skip
_PRECONDITION_FAILED = 412
_TEMPORARY_STATUS = (408, 429)


class IncompleteBlockError(Exception):
    """A response ended before the bytes that were requested."""

    def __init__(self, received: int, requested: int) -> None:
        super().__init__()
        self.received = received
        self.requested = requested


class ReplacedFileError(Exception):
    """The file has another version than when it was first opened."""


@dataclass(frozen=True)
class _Problem:
    text: str
    is_temporary: bool = False


def describe_remote_error(error: BaseException, url: DataUrl, place: str | None = None) -> str:
    """Return a message for the user; `place` says how far the file was read."""
    for link in _chain(error):
        if isinstance(link, MerlinaError):
            return f"{str(url)!r} cannot be read: {link.message}"
    return f"{_problem(error, url).text}{f' (at {place})' if place else ''}"


def is_temporary(error: BaseException) -> bool:
    """Return whether another attempt may succeed."""
    return _problem(error, DataUrl("https", "", "")).is_temporary


def _problem(error: BaseException, url: DataUrl) -> _Problem:
    links = list(_chain(error))
    if any(isinstance(link, MerlinaError) for link in links):
        return _Problem("")
    found = (_known_problem(link, url) for link in links)
    # fsspec replaces the errors of HTTP by one for a missing file; its cause is more informative.
    default = _Problem(f"{str(url)!r} cannot be read ({type(links[-1]).__name__})")
    missing = [_missing(url)] if any(isinstance(link, FileNotFoundError) for link in links) else []
    return next(filter(None, found), (*missing, default)[0])


def _known_problem(error: BaseException, url: DataUrl) -> _Problem | None:
    names = {kind.__name__ for kind in type(error).__mro__}
    shown = repr(str(url))
    if isinstance(error, IncompleteBlockError):
        sent = f"sent {error.received:,} of {error.requested:,} bytes"
        text = f"The server of {shown} {sent}, so that the file is incomplete; try again later"
        return _Problem(text, is_temporary=True)
    if "TooManyRedirects" in names:
        return _Problem(f"{shown} redirects too often")
    if "RedirectClientError" in names:
        return _Problem(f"{shown} redirects to an address that cannot be read: not http or https, or not valid")
    if isinstance(error, ReplacedFileError) or "FileExpired" in names:
        return _replaced(url)
    if names & _NO_CREDENTIALS:
        return _Problem(f"{shown} cannot be read: {_CREDENTIALS.get(url.scheme, 'credentials are missing')}")
    if (status := _status(error)) is not None:
        return _of_status(status, url)
    if isinstance(error, PermissionError) or str(error).startswith("Forbidden"):
        return _denied(url)
    if names & _CERTIFICATE:
        return _Problem(f"The certificate of the server of {shown} is not trusted on this machine")
    if names & _TIMEOUTS:
        return _Problem(f"The server of {shown} did not respond in time; try again later", is_temporary=True)
    if names & _UNREACHABLE:
        return _Problem(
            f"The server of {shown} cannot be reached; check the address and the network", is_temporary=True
        )
    if names & _BROKEN:
        return _Problem(f"The connection to the server of {shown} broke; try again later", is_temporary=True)
    return None


def _of_status(status: int, url: DataUrl) -> _Problem:
    if status in (404, 410):
        return _missing(url)
    if status == _PRECONDITION_FAILED:
        return _replaced(url)
    if status in (401, 403):
        return _denied(url)
    if status >= 500 or status in _TEMPORARY_STATUS:
        text = f"The server of {str(url)!r} failed to respond (status {status}); try again later"
        return _Problem(text, is_temporary=True)
    return _Problem(f"The server of {str(url)!r} refused the request (status {status})")


def _missing(url: DataUrl) -> _Problem:
    return _Problem(f"There is no file at {str(url)!r}")


def _replaced(url: DataUrl) -> _Problem:
    return _Problem(f"The file at {str(url)!r} was replaced while it was being read; try again")


def _denied(url: DataUrl) -> _Problem:
    hint = _CREDENTIALS.get(url.scheme, "https:// addresses are read without credentials; upload the file instead")
    return _Problem(f"Access to {str(url)!r} is denied: {hint}")


def _status(error: BaseException) -> int | None:
    """Return the status of an HTTP response, from an error of aiohttp, gcsfs or botocore."""
    for name in ("status", "code"):
        value = getattr(error, name, None)
        if isinstance(value, int | str) and str(value).isdigit() and int(value) >= 400:
            return int(value)
    response = getattr(error, "response", None)
    if isinstance(response, Mapping):
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        return int(status) if status >= 400 else None
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield the error and its causes."""
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
