"""A job's messages over the WebSocket: where to connect, when it is over, how long to wait before trying again."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

from merlina.errors import (
    ForbiddenError,
    InvalidRequestError,
    MerlinaError,
    NotFoundError,
    TooManyAttemptsError,
    UnauthorizedError,
)

Message = dict[str, Any]

# About a minute in all; then the server is taken to be gone.
RECONNECT_SECONDS = (0.2, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0)
CUT = (ConnectionClosed, OSError, InvalidHandshake, EOFError)
_NORMAL_END = 1000
_INVALID_REQUEST = 4400
_UNKNOWN_JOB = 4404
_UNAUTHORIZED, _FORBIDDEN, _NOT_FOUND, _TOO_MANY = 401, 403, 404, 429
_USUAL_WAIT = 300


def address(url: str, job_id: str, after: int | None) -> str:
    """The WebSocket's address; `after` replays from that event on."""
    scheme, host, path, *_ = urlsplit(url)
    query = "" if after is None else f"after={after}"
    return urlunsplit(("wss" if scheme == "https" else "ws", host, f"{path}/ws/{quote(job_id, safe='')}", query, ""))


def check_end(closed: ConnectionClosed, job_id: str) -> None:
    """Returns where the connection ended because the job did.

    Raises NotFoundError where there is no such job, InvalidRequestError where `after` is no number of an event, and
    `closed` where it was cut.
    """
    code = closed.rcvd.code if closed.rcvd else None
    if code == _UNKNOWN_JOB:
        raise NotFoundError(f"There is no job {job_id!r}") from closed
    if code == _INVALID_REQUEST:
        raise InvalidRequestError("after: must be the number of an event, 0 or more in at most 18 digits") from closed
    if code != _NORMAL_END:
        raise closed


def refusal(error: Exception) -> MerlinaError | None:
    """What a server that answers, but lets nobody connect like this, means; None where trying again may help."""
    if not isinstance(error, InvalidStatus):
        return None
    status = error.response.status_code
    if status == _UNAUTHORIZED:
        return UnauthorizedError("The server wants a valid API key")
    if status == _TOO_MANY:
        wait = error.response.headers.get("Retry-After", "")
        return TooManyAttemptsError("Too many wrong API keys", int(wait) if wait.isdecimal() else _USUAL_WAIT)
    if status == _FORBIDDEN:
        return ForbiddenError("The server refuses this connection: it is not known by this name, or the key is wrong")
    return NotFoundError("What answers here is no Merlina server") if status == _NOT_FOUND else None
