"""HTTP responses parsed to the schemas' models, or to the errors that they report."""

from __future__ import annotations

import re
from html import unescape
from typing import Any, TypeVar

import httpx
from pydantic import BaseModel, ValidationError

from merlina.errors import (
    BusyError,
    ConflictError,
    DiskFullError,
    ForbiddenError,
    InsufficientMemoryError,
    InvalidRequestError,
    MerlinaError,
    NotFoundError,
    OverridableError,
    ServerError,
    TimedOutError,
    TooLargeError,
    UnauthorizedError,
)
from merlina.schemas.chat import AnswerBegins, AnswerEnds, AnswerFails, AnswerLine, AnswerText
from merlina.schemas.system import ErrorDetails
from merlina.schemas.training.config import TrainingConfig

Model = TypeVar("Model", bound=BaseModel)
AnswerEvent = AnswerBegins | AnswerText | AnswerEnds

_TITLE = re.compile(r"<title[^>]*>(.*?)</title", re.IGNORECASE | re.DOTALL)
_MAX_SHOWN = 100
_ERRORS: dict[int, type[MerlinaError]] = {
    400: InvalidRequestError,
    401: UnauthorizedError,
    403: ForbiddenError,
    404: NotFoundError,
    408: TimedOutError,
    409: ConflictError,
    413: TooLargeError,
    503: BusyError,
    507: DiskFullError,
}


def parse(response: httpx.Response, model: type[Model]) -> Model:
    """Return the response as a model. Raises ServerError if a server of this version would not send it."""
    try:
        return model.model_validate_json(response.content)
    except ValueError as error:
        address = f"{response.url.scheme}://{response.url.netloc.decode()}"
        raise ServerError(f"The response from {address} is not that of a Merlina server of this version") from error


def answer_event(line: str) -> AnswerEvent:
    """Return one line of an answer. Raises ServerError if the answer failed."""
    try:
        event = AnswerLine.model_validate_json(line).root
    except ValueError as error:
        raise ServerError(f"The server sent a line that is not part of an answer: {line[:200]}") from error
    if isinstance(event, AnswerFails):
        raise ServerError(f"The answer failed: {event.error}")
    return event


def error_of(response: httpx.Response) -> MerlinaError:
    """Return the error that a response with a status of 400 or higher reports."""
    try:
        detail = response.json()["detail"]
    except (ValueError, KeyError, TypeError):
        return ServerError(_foreign(response))
    try:
        details = ErrorDetails.model_validate(detail)
    except ValidationError:
        return _ERRORS.get(response.status_code, ServerError)(detail if isinstance(detail, str) else str(detail)[:200])
    if details.can_force:
        kind = InsufficientMemoryError if "/chat/" in response.request.url.path else OverridableError
        return kind(details.message)
    return InvalidRequestError(details.message, details.findings)


def _foreign(response: httpx.Response) -> str:
    """Return one line, without markup, for an error page that another program, such as a proxy, returned."""
    status = f"{response.status_code} {response.reason_phrase}".strip()
    title = _TITLE.search(response.text)
    text = unescape(title[1]) if title else "" if "<" in response.text else response.text
    text = " ".join(text.split())[:_MAX_SHOWN]
    where = f"{response.url.scheme}://{response.url.netloc.decode()}"
    line = f"The response from {where} does not come from a Merlina server but, for example, from a proxy: {status}"
    return line if text in ("", status, response.reason_phrase) else f"{line} ({text!r})"


def sendable(config: BaseModel) -> dict[str, Any]:
    """Return the fields that were set as JSON, including tokens."""
    content = config.model_dump(mode="json", exclude_unset=True)
    if isinstance(config, TrainingConfig):
        content |= config.secrets()
    return content
