"""Requests of the blocking client: connections, repetitions and errors."""

from __future__ import annotations

import time
from itertools import chain, islice, repeat
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import httpx

from merlina.client.connection import direct, unreachable, url_and_key
from merlina.client.responses import Model, error_of, parse
from merlina.errors import InvalidRequestError, ServerError

_RETRY_SECONDS = (0.3, 1.0, 2.0, 4.0)


class ServerConnection:
    """Sends requests to the server at `url` and returns parsed responses. See `Client` for the parameters."""

    def __init__(
        self, url: str | None = None, api_key: str | None = None, *, timeout: float | None = 200.0, retries: int = 2
    ) -> None:
        self.url, api_key = url_and_key(url, api_key)
        self.headers = {"X-API-Key": api_key} if api_key else {}
        self._retries = retries
        self._http = httpx.Client(base_url=self.url, headers=self.headers, timeout=timeout, mounts=direct(self.url))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        self._http.close()

    def _get(self, path: str, model: type[Model], **params: Any) -> Model:
        return parse(self._send("GET", path, params=not_none(**params)), model)

    def _send(self, method: str, path: str, **options: Any) -> httpx.Response:
        retries = self._retries if method == "GET" else 0
        for wait in [*islice(chain(_RETRY_SECONDS, repeat(_RETRY_SECONDS[-1])), max(0, retries)), None]:
            try:
                response = self._http.request(method, path, **options)
                break
            except ValueError as error:  # NaN is not valid JSON
                raise InvalidRequestError(f"The request cannot be encoded as JSON: {error}") from error
            except httpx.TransportError as error:
                if wait is None:
                    raise self._unreachable(error) from error
                time.sleep(wait)
        if response.is_error:
            raise error_of(response)
        return response

    def _unreachable(self, error: Exception) -> ServerError:
        return unreachable(self.url, error)


def segment(name: str) -> str:
    """Return a name as a single path segment. Raises InvalidRequestError if it would address another endpoint."""
    if name in ("", ".", ".."):
        raise InvalidRequestError(f"{name!r} is not a valid name of a job, data set or configuration")
    return quote(name, safe="")


def not_none(**values: Any) -> dict[str, Any]:
    """Return the values that are not None."""
    return {name: value for name, value in values.items() if value is not None}
