"""The server's address, proxies on the way to it, and the causes of failed connections."""

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
    """Return address and API key, which default to environment variables. Raises InvalidRequestError."""
    url = url or os.environ.get(URL_VARIABLE) or DEFAULT_URL
    api_key = api_key or os.environ.get(API_KEY_VARIABLE) or None
    if urlsplit(url).scheme not in ("http", "https"):
        raise InvalidRequestError(f"{url!r} is not the address of a server; it must begin with http:// or https://")
    if api_key is not None and not (api_key.isascii() and api_key.isprintable()):
        raise InvalidRequestError("The API key must be plain ASCII")
    return url.rstrip("/"), api_key


def is_loopback(url: str) -> bool:
    """Return whether `url` leads to this machine, which a proxy cannot reach."""
    host = (urlsplit(url).hostname or "").rstrip(".")
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def direct(url: str) -> dict[str, None]:
    """Return httpx mounts that bypass the environment's proxy for a server on this machine."""
    return dict.fromkeys(("all://", "http://", "https://")) if is_loopback(url) else {}


def websocket_proxy(url: str) -> Literal[True] | None:
    """Return the `proxy` argument of websockets: True uses the environment's proxy, None uses none."""
    return None if is_loopback(url) else True


def unreachable(url: str, error: BaseException) -> ServerError:
    """Return the error for an unreachable server, with its cause and a remedy."""
    return ServerError(f"No Merlina server responds at {url}: {_reason(url, error)}")


def _reason(url: str, error: BaseException) -> str:
    causes = list(_causes(error))
    host = urlsplit(url).hostname
    if isinstance(error, (httpx.ProxyError, ProxyError)):
        return (
            f"the proxy refused the connection ({error}); add {host} to NO_PROXY, or correct HTTP_PROXY and HTTPS_PROXY"
        )
    if proxy := _proxy_of(url):
        return f"{str(error) or type(error).__name__}, through the proxy {proxy}; add {host} to NO_PROXY to bypass it"
    for cause in causes:
        if isinstance(cause, ssl.SSLCertVerificationError):
            advice = "set SSL_CERT_FILE to the certificate of its authority"
            return f"its certificate is not accepted ({cause.verify_message}); {advice}"
        if isinstance(cause, ssl.SSLError):
            return "it does not speak TLS, which https requires; try http://"
        if isinstance(cause, socket.gaierror):
            return f"the host name {host!r} cannot be resolved (DNS); check the address"
        if isinstance(cause, ConnectionRefusedError):
            advice = (
                "`merlina serve` starts one"
                if is_loopback(url)
                else "check the address and port, and that the server is running"
            )
            return f"the connection was refused; {advice}"
    if isinstance(error, (httpx.TimeoutException, TimeoutError)):
        return "it did not respond in time"
    if isinstance(error, httpx.RemoteProtocolError) or any(isinstance(cause, ConnectionResetError) for cause in causes):
        return (
            "the connection was closed before the response; check the port, and whether the server uses http or https"
        )
    return str(error) or type(error).__name__


def _proxy_of(url: str) -> str | None:
    """Return the environment's proxy for `url` without its password."""
    parts = urlsplit(url)
    if is_loopback(url) or not parts.hostname or proxy_bypass(parts.hostname):
        return None
    proxies = getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    return proxy and proxy.rpartition("@")[2]


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield the error, its causes and its contexts, each once."""
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
