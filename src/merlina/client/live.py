"""What both clients need to read a job's messages: address, parsing, the end of a connection, reconnecting."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import quote, urlsplit, urlunsplit

from pydantic import Field, TypeAdapter
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

from merlina.errors import (
    ForbiddenError,
    InvalidRequestError,
    MerlinaError,
    NotFoundError,
    ServerError,
    TooManyAttemptsError,
    UnauthorizedError,
)
from merlina.schemas.messages import JobMessage

# Waits before reconnecting, about a minute in all; then the server counts as unreachable.
RECONNECT_SECONDS = (0.2, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0)
CONNECTION_ERRORS = (ConnectionClosed, OSError, InvalidHandshake, EOFError)
_NORMAL_END = 1000
_INVALID_REQUEST = 4400
_UNKNOWN_JOB = 4404
_UNAUTHORIZED, _FORBIDDEN, _NOT_FOUND, _TOO_MANY = 401, 403, 404, 429
_DEFAULT_RETRY_SECONDS = 300
_MESSAGE: TypeAdapter[JobMessage] = TypeAdapter(Annotated[JobMessage, Field(discriminator="type")])


def address(url: str, job_id: str, after: int | None) -> str:
    """Return the WebSocket's address. `after` replays the events after that number."""
    scheme, host, path, *_ = urlsplit(url)
    query = "" if after is None else f"after={after}"
    return urlunsplit(("wss" if scheme == "https" else "ws", host, f"{path}/ws/{quote(job_id, safe='')}", query, ""))


def parse_message(text: str | bytes) -> JobMessage:
    """Return a message of the server. Raises ServerError if this version does not know it."""
    try:
        return _MESSAGE.validate_json(text)
    except ValueError as error:
        raise ServerError(f"The server sent a message that this version does not understand: {text[:200]!r}") from error


def check_end(closed: ConnectionClosed, job_id: str) -> None:
    """Return if the connection ended because the job did.

    Raises NotFoundError if the job does not exist, InvalidRequestError if `after` is not the number of an event, and
    `closed` if the connection was lost.
    """
    code = closed.rcvd.code if closed.rcvd else None
    if code == _UNKNOWN_JOB:
        raise NotFoundError(f"There is no job {job_id!r}") from closed
    if code == _INVALID_REQUEST:
        raise InvalidRequestError("after: must be the number of an event, 0 or more in at most 18 digits") from closed
    if code != _NORMAL_END:
        raise closed


def refusal(error: Exception) -> MerlinaError | None:
    """Return the error of a server that refuses the connection; None if trying again may help."""
    if not isinstance(error, InvalidStatus):
        return None
    status = error.response.status_code
    if status == _UNAUTHORIZED:
        return UnauthorizedError("The server requires a valid API key")
    if status == _TOO_MANY:
        wait = error.response.headers.get("Retry-After", "")
        return TooManyAttemptsError(
            "Too many wrong API keys", int(wait) if wait.isdecimal() else _DEFAULT_RETRY_SECONDS
        )
    if status == _FORBIDDEN:
        return ForbiddenError(
            "The server refuses this connection: it does not accept this host name, or the API key is wrong"
        )
    return NotFoundError("This address does not belong to a Merlina server") if status == _NOT_FOUND else None
