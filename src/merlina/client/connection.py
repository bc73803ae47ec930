"""Where the server is, how to reach it, and why it could not be reached."""

from __future__ import annotations

import ipaddress
import os
import socket
import ssl
from collections.abc import Iterator
from typing import Literal
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx
from websockets.exceptions import ProxyError

from merlina.errors import InvalidRequestError, ServerError

DEFAULT_URL = "http://127.0.0.1:8000"
URL_VARIABLE, API_KEY_VARIABLE = "MERLINA_URL", "MERLINA_API_KEY"


def url_and_key(url: str | None, api_key: str | None) -> tuple[str, str | None]:
    """Return address and key: those given, else those of the environment. Raises InvalidRequestError."""
    url = url or os.environ.get(URL_VARIABLE) or DEFAULT_URL
    api_key = api_key or os.environ.get(API_KEY_VARIABLE) or None
    if urlsplit(url).scheme not in ("http", "https"):
        raise InvalidRequestError(f"{url!r} is no address of a server; it begins with http:// or https://")
    if api_key is not None and not (api_key.isascii() and api_key.isprintable()):
        raise InvalidRequestError("The API key must be plain ASCII")
    return url.rstrip("/"), api_key


def is_loopback(url: str) -> bool:
    """Whether `url` leads to this machine, which no proxy can reach on our behalf."""
    host = (urlsplit(url).hostname or "").rstrip(".")
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def direct(url: str) -> dict[str, None]:
    """Return what keeps httpx from taking a proxy of the environment to this machine."""
    return dict.fromkeys(("all://", "http://", "https://")) if is_loopback(url) else {}


def websocket_proxy(url: str) -> Literal[True] | None:
    """Return the same for websockets: True takes the environment's proxy, None takes none."""
    return None if is_loopback(url) else True


def unreachable(url: str, error: BaseException) -> ServerError:
    """Return the error for a server that could not be reached, with the cause and what to do about it."""
    return ServerError(f"No Merlina server answers at {url}: {_reason(url, error)}")


def _reason(url: str, error: BaseException) -> str:
    causes = list(_causes(error))
    host = urlsplit(url).hostname
    if isinstance(error, (httpx.ProxyError, ProxyError)):
        return f"the proxy refused ({error}); add {host} to NO_PROXY, or correct HTTP_PROXY and HTTPS_PROXY"
    if proxy := _proxy_of(url):
        return (
            f"{str(error) or type(error).__name__}, by way of the proxy {proxy}; add {host} to NO_PROXY to go without"
        )
    for cause in causes:
        if isinstance(cause, ssl.SSLCertVerificationError):
            advice = "set SSL_CERT_FILE to the authority's certificate"
            return f"its certificate is not accepted ({cause.verify_message}); {advice}"
        if isinstance(cause, ssl.SSLError):
            return "it does not speak TLS as https needs it; try http://"
        if isinstance(cause, socket.gaierror):
            return f"the name {host!r} is not known (DNS); check the address"
        if isinstance(cause, ConnectionRefusedError):
            advice = (
                "`merlina serve` starts one"
                if is_loopback(url)
                else "check address and port, and that it listens there"
            )
            return f"the connection was refused; {advice}"
    if isinstance(error, (httpx.TimeoutException, TimeoutError)):
        return "it did not answer in time"
    if isinstance(error, httpx.RemoteProtocolError) or any(isinstance(cause, ConnectionResetError) for cause in causes):
        return (
            "the connection was closed before the answer; check that a Merlina server listens there, and http or https"
        )
    return str(error) or type(error).__name__


def _proxy_of(url: str) -> str | None:
    """Return the proxy that the environment names for `url`, without a password it may hold."""
    parts = urlsplit(url)
    if is_loopback(url) or not parts.hostname or proxy_bypass(parts.hostname):
        return None
    proxies = getproxies()
    named = proxies.get(parts.scheme) or proxies.get("all")
    return named and named.rpartition("@")[2]


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and what it came from, without going in circles."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        found = waiting.pop()
        if found is None or id(found) in seen:
            continue
        seen.add(id(found))
        yield found
        waiting += [found.__cause__, found.__context__]
        waiting += found.exceptions if isinstance(found, BaseExceptionGroup) else ()
