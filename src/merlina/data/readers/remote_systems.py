"""The file systems of fsspec for https, s3 and gs, restricted to what a server allows and with limits of time.

Credentials for s3 and gs are those that the libraries find in this process's environment; no request brings any.
"""

from __future__ import annotations

import inspect
from functools import partial
from typing import TYPE_CHECKING, Any

from merlina.domain.data_urls import AllowedUrls, DataUrl
from merlina.errors import DataError

if TYPE_CHECKING:
    from aiohttp import ClientSession, ClientTimeout

_PACKAGES = {"https": "aiohttp", "http": "aiohttp", "s3": "s3fs", "gs": "gcsfs"}
# Bytes are read as they are stored: a range of a body that was compressed on the way could not be decompressed.
HTTP_HEADERS = {"Accept-Encoding": "identity"}
_CONNECT_SECONDS = 5
# Without any data for this long, a request fails.
_READ_SECONDS = 10
# The longest time that a request waits without receiving anything.
REQUEST_SECONDS = _CONNECT_SECONDS + _READ_SECONDS


def file_system(scheme: str, allowed: AllowedUrls) -> Any:
    """Return a file system of fsspec, which caches nothing and sends each request once.

    Raises DataError if a package is missing.
    """
    import fsspec

    try:
        options = _options(scheme, allowed)
        system = fsspec.filesystem(scheme, skip_instance_cache=True, use_listings_cache=False, **options)
    except ImportError as error:
        raise DataError(
            f"{scheme}:// addresses need the package {_PACKAGES[scheme]}, which is not installed; install it where the "
            "server runs: pip install 'merlina[remote]'"
        ) from error
    # The reader of blocks tries again itself; the attempts of the libraries would multiply its own.
    if scheme == "s3":
        system.retries = 1
    elif scheme == "gs":
        # gcsfs has no setting for the six attempts of the decorator of this private method, with up to a minute
        # between them. It is replaced by what was decorated; a test counts the requests to a server that stays busy.
        system._request = partial(inspect.unwrap(type(system)._request), system)
    return system


def _options(scheme: str, allowed: AllowedUrls) -> dict[str, Any]:
    """Return the options of the file system. Raises ImportError."""
    if scheme == "s3":
        limits = {"connect_timeout": _CONNECT_SECONDS, "read_timeout": _READ_SECONDS}
        return {"config_kwargs": {**limits, "retries": {"total_max_attempts": 1}}}
    if scheme == "gs":
        # gcsfs looks up the kind of the bucket as well, and does without it when this takes longer.
        # Versions are named by their generation.
        return {
            "version_aware": True,
            "access": "read_only",
            "requests_timeout": _time_limits(),
            "retry_timeout": _CONNECT_SECONDS,
        }
    return {"headers": HTTP_HEADERS, "get_client": partial(_http_client, allowed)}


def _time_limits() -> ClientTimeout:
    import aiohttp

    return aiohttp.ClientTimeout(total=None, connect=_CONNECT_SECONDS, sock_read=_READ_SECONDS)


async def _http_client(allowed: AllowedUrls, **_: Any) -> ClientSession:
    """Return an HTTP client that connects to allowed addresses only, also when it follows a redirect."""
    import aiohttp

    class AllowedConnector(aiohttp.TCPConnector):
        async def connect(self, req: aiohttp.ClientRequest, *args: Any, **options: Any) -> Any:
            # Signatures in the query of a redirect are used, and shown nowhere.
            _refuse_other(str(req.url.with_query(None).with_fragment(None)), allowed)
            return await super().connect(req, *args, **options)

    # With trust_env, it uses the proxy that HTTPS_PROXY names.
    return aiohttp.ClientSession(
        connector=AllowedConnector(), timeout=_time_limits(), auto_decompress=False, trust_env=True
    )


def _refuse_other(address: str, allowed: AllowedUrls) -> None:
    """Raise DataError for the target of a redirect that is not allowed."""
    try:
        url = DataUrl.parse(address)
    except ValueError as error:
        raise DataError(f"The server redirects to an address that {error}") from None
    if not allowed.allows(url):
        # A path may contain a secret, too.
        raise DataError(
            f"The server redirects to {url.scheme}://{url.host}, to an address that ALLOWED_DATA_URLS does not include"
        )
