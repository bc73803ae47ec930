"""From HTTP answers to the schemas' models, or to the errors they stand for."""

from __future__ import annotations

import re
from html import unescape
from typing import Any, TypeVar

import httpx
from pydantic import BaseModel

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
from merlina.schemas.training import TrainingConfig

Model = TypeVar("Model", bound=BaseModel)
AnswerEvent = AnswerBegins | AnswerText | AnswerEnds

_TITLE = re.compile(r"<title[^>]*>(.*?)</title", re.IGNORECASE | re.DOTALL)
_SHOWN = 100
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
    """Raises ServerError where the answer is not what this version's server sends."""
    try:
        return model.model_validate_json(response.content)
    except ValueError as error:
        address = f"{response.url.scheme}://{response.url.netloc.decode()}"
        raise ServerError(f"What answers at {address} is no Merlina server of this version") from error


def answer_event(line: str) -> AnswerEvent:
    """One line of an answer. Raises ServerError where it broke off."""
    try:
        event = AnswerLine.model_validate_json(line).root
    except ValueError as error:
        raise ServerError(f"The server sent a line that is none of an answer: {line[:200]}") from error
    if isinstance(event, AnswerFails):
        raise ServerError(f"The answer broke off: {event.error}")
    return event


def error_of(response: httpx.Response) -> MerlinaError:
    """The error that an answer of 400 or more stands for."""
    try:
        detail = response.json()["detail"]
    except (ValueError, KeyError, TypeError):
        return ServerError(_foreign(response))
    if isinstance(detail, dict) and {"message", "errors", "warnings"} <= detail.keys():
        if detail.get("can_force"):
            kind = InsufficientMemoryError if "/chat/" in response.request.url.path else OverridableError
            return kind(detail["message"])
        return InvalidRequestError(detail["message"], detail["errors"], detail["warnings"])
    return _ERRORS.get(response.status_code, ServerError)(detail if isinstance(detail, str) else str(detail)[:200])


def _foreign(response: httpx.Response) -> str:
    """An error page that is not Merlina's own, such as a proxy's, in one line without its markup."""
    status = f"{response.status_code} {response.reason_phrase}".strip()
    title = _TITLE.search(response.text)
    text = unescape(title[1]) if title else "" if "<" in response.text else response.text
    said = " ".join(text.split())[:_SHOWN]
    where = f"{response.url.scheme}://{response.url.netloc.decode()}"
    line = f"What answers at {where} is no Merlina server but something before it, such as a proxy: {status}"
    return line if said in ("", status, response.reason_phrase) else f"{line} ({said!r})"


def sendable(config: BaseModel) -> dict[str, Any]:
    """What was set of a configuration as JSON, with the tokens it carries."""
    content = config.model_dump(mode="json", exclude_unset=True)
    if isinstance(config, TrainingConfig):
        content |= config.secrets()
    return content
