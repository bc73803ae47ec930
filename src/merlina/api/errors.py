"""The one place where errors become HTTP answers: always `{"detail": …}`, never a token, never a traceback."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.routing import compile_path

from merlina.api import page
from merlina.errors import (
    BusyError,
    ConflictError,
    DataError,
    DiskFullError,
    ForbiddenError,
    HelperError,
    InvalidRequestError,
    MerlinaError,
    ModelError,
    NotFoundError,
    OverridableError,
    TimedOutError,
    TooLargeError,
    TooManyAttemptsError,
    UnauthorizedError,
    UnreachableError,
)
from merlina.schemas.parsing.json_text import why_not_json
from merlina.schemas.parsing.validation_errors import OWN_TYPES, describe_one

_log = logging.getLogger(__name__)
_NOT_VALID = "The request is not valid"

# The nearest ancestor in this table gives an error its status.
STATUS: dict[type[MerlinaError], int] = {
    InvalidRequestError: 400,
    DataError: 400,
    ModelError: 400,
    NotFoundError: 404,
    UnauthorizedError: 401,
    ForbiddenError: 403,
    ConflictError: 409,
    TimedOutError: 408,
    TooLargeError: 413,
    TooManyAttemptsError: 429,
    HelperError: 500,
    BusyError: 503,
    UnreachableError: 503,
    DiskFullError: 507,
    MerlinaError: 500,
}


def install(app: FastAPI) -> None:
    """Adds the handlers to the app."""
    app.add_exception_handler(MerlinaError, _on_merlina_error)
    app.add_exception_handler(RequestValidationError, _on_bad_request)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(OSError, _on_os_error)
    app.add_exception_handler(Exception, _on_bug)


def status_of(error: MerlinaError) -> int:
    return next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)


def answer(
    status: int,
    message: str,
    errors: list[str] | None = None,
    warnings: list[str] | None = None,
    *,
    can_force: bool = False,
) -> JSONResponse:
    """`detail` is a string, or an object where there is more to tell: errors, warnings, that it can be forced."""
    detail: Any = _encodable(message)
    if errors or warnings or can_force:
        lists = {"errors": errors or [], "warnings": warnings or []}
        detail = {"message": detail, **{name: [_encodable(line) for line in lines] for name, lines in lists.items()}}
        detail |= {"can_force": True} if can_force else {}
    return JSONResponse({"detail": detail}, status)


def _encodable(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


def response(error: MerlinaError) -> JSONResponse:
    """The answer to a request that failed with the error."""
    if isinstance(error, InvalidRequestError):
        return answer(400, error.message, list(error.errors), list(error.warnings))
    found = answer(status_of(error), error.message, can_force=isinstance(error, OverridableError))
    if isinstance(error, TooManyAttemptsError):
        found.headers["Retry-After"] = str(error.seconds)
    return found


def _on_merlina_error(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, MerlinaError)
    return response(error)


def _on_bad_request(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    model = _body_model(request)
    problems = [_describe(dict(problem), model, error.body) for problem in error.errors()]
    kind = request.headers.get("content-type", "none")
    if model is not None and "json" not in kind:
        problems.append(f"the Content-Type is {kind[:100]}; send application/json")
    return answer(400, _NOT_VALID, problems)


def _describe(problem: dict[str, Any], model: type[BaseModel] | None, body: Any) -> str:
    where, *loc = problem["loc"]
    if problem["type"] == "json_invalid":
        return f"body: {why_not_json(json.JSONDecodeError(problem['ctx']['error'], body, loc[0]))}"
    if where == "body" and not loc and problem["type"] not in OWN_TYPES:
        return "body: a JSON object is needed"
    if where == "body":
        return describe_one({**problem, "loc": loc}, model)
    if problem["type"].startswith(("greater_than", "less_than")):
        # A number, though an address holds it as text.
        problem["input"] = _as_number(problem["input"])
    return describe_one({**problem, "loc": loc or [where]}, None)


def _as_number(text: Any) -> Any:
    for kind in (int, float):
        with contextlib.suppress(TypeError, ValueError):
            return kind(text)
    return text


def _body_model(request: Request) -> type[BaseModel] | None:
    route = request.scope.get("route")
    field = route.body_field if isinstance(route, APIRoute) else None
    annotation = field.field_info.annotation if field else None
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = str(error.detail)
    if error.status_code == 400 and isinstance(error.__cause__, (ValueError, RecursionError)):
        # FastAPI could not parse a body for another reason than its grammar.
        return answer(400, _NOT_VALID, [f"body: {why_not_json(error.__cause__)}"])
    if error.status_code == 404:
        if page.wants_page(request):
            return page.nowhere(request)
        message = f"There is nothing at {request.url.path}; GET /api lists what there is"
    if error.status_code == 405:
        allowed = ", ".join(_methods_at(request))
        message = f"{request.method} is not allowed at {request.url.path}, which takes {allowed}"
        return JSONResponse({"detail": _encodable(message)}, 405, headers={"Allow": allowed})
    return JSONResponse({"detail": _encodable(message)}, error.status_code, headers=error.headers)


def _methods_at(request: Request) -> list[str]:
    """The methods of the endpoint at the request's path."""
    paths, asked = request.app.openapi()["paths"], request.url.path
    path = asked if asked in paths else next((path for path in paths if compile_path(path)[0].match(asked)), None)
    methods = {method.upper() for method in paths[path]} if path else {"GET"}
    return sorted(methods | {"HEAD"} if "GET" in methods else methods)


def _on_os_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, OSError)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return answer(507, f"The disk is full ({error.filename or 'data folder'}): free some space and try again")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        _log.error("%s %s: %s", request.method, request.url.path, error)
        return answer(500, f"The server has no access to {error.filename or 'its files'}: {error.strerror}")
    return _on_bug(request, error)


def _on_bug(request: Request, error: Exception) -> JSONResponse:
    _log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return answer(500, f"Internal error ({type(error).__name__}); the server's log has its cause")
