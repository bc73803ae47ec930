"""Maps errors to HTTP responses: always `{"detail": …}`, never a token, never a traceback."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
from dataclasses import asdict
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
    Finding,
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
    is_disk_full,
)
from merlina.schemas.completions import CompletionError, CompletionErrorResponse
from merlina.schemas.parsing.json_text import why_not_json
from merlina.schemas.parsing.validation_errors import OWN_TYPES, describe_one

_log = logging.getLogger(__name__)
_NOT_VALID = "The request is not valid"

# An error has the status of its nearest ancestor in this table.
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
    """Add the error handlers to the app."""
    app.add_exception_handler(MerlinaError, _on_merlina_error)
    app.add_exception_handler(RequestValidationError, _on_invalid_request)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(OSError, _on_os_error)
    app.add_exception_handler(Exception, _on_unexpected_error)


def status_of(error: MerlinaError) -> int:
    return next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)


def error_response(error: MerlinaError) -> JSONResponse:
    """Return the response to a request that failed with the error.

    `detail` is the message, or an object if there are findings or if the request can be repeated with `force`.
    """
    detail: Any = error.message
    if isinstance(error, InvalidRequestError) and error.findings:
        findings = list(map(asdict, error.findings))
        detail = {"message": detail, "errors": error.errors, "warnings": error.warnings, "findings": findings}
    elif isinstance(error, OverridableError):
        detail = {"message": detail, "errors": [], "warnings": [], "can_force": True}
    headers = {"Retry-After": str(error.seconds)} if isinstance(error, TooManyAttemptsError) else None
    return _DetailResponse(detail, status_of(error), headers)


class _DetailResponse(JSONResponse):
    """The object `{"detail": …}`, in which characters that UTF-8 cannot encode are replaced."""

    def render(self, content: Any) -> bytes:
        return json.dumps({"detail": content}, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def completion_error(error: MerlinaError) -> CompletionErrorResponse:
    """Return the body of an error of `/v1`, in the form of OpenAI's API."""
    findings = error.findings if isinstance(error, InvalidRequestError) else ()
    status = status_of(error)
    return CompletionErrorResponse(
        error=CompletionError(
            message=str(error) if findings else error.message,
            type="invalid_request_error" if status < 500 else "server_error",
            param=next((finding.field for finding in findings), None),
            code="model_not_found" if status == 404 else None,
        )
    )


def _on_merlina_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, MerlinaError)
    return _error_response(request, error)


def _error_response(request: Request, error: MerlinaError) -> JSONResponse:
    route = request.scope.get("route")
    if isinstance(route, APIRoute) and route.path.startswith("/v1/"):
        return JSONResponse(completion_error(error).model_dump(), status_of(error))
    return error_response(error)


def _on_invalid_request(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    model = _body_model(request)
    findings = [_describe(dict(problem), model, error.body) for problem in error.errors()]
    kind = request.headers.get("content-type", "none")
    if model is not None and "json" not in kind:
        findings.append(Finding(f"the Content-Type is {kind[:100]}; send application/json"))
    return _error_response(request, InvalidRequestError(_NOT_VALID, findings))


def _describe(problem: dict[str, Any], model: type[BaseModel] | None, body: Any) -> Finding:
    where, *loc = problem["loc"]
    if problem["type"] == "json_invalid":
        return Finding(why_not_json(json.JSONDecodeError(problem["ctx"]["error"], body, loc[0])), "body")
    if where == "body" and not loc and problem["type"] not in OWN_TYPES:
        return Finding("a JSON object is required", "body")
    if where == "body":
        return describe_one({**problem, "loc": loc}, model)
    if problem["type"].startswith(("greater_than", "less_than")):
        # Parameters arrive as text; the message shows the number.
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
        # FastAPI could not parse the body for a reason other than its syntax.
        finding = Finding(why_not_json(error.__cause__), "body")
        return _error_response(request, InvalidRequestError(_NOT_VALID, [finding]))
    if error.status_code == 404:
        if page.wants_page(request):
            return page.not_found(request)
        message = f"{request.url.path} does not exist; GET /api lists all endpoints"
    if error.status_code == 405:
        allowed = ", ".join(_methods_at(request))
        message = f"{request.method} is not allowed at {request.url.path}; use {allowed}"
        return _DetailResponse(message, 405, {"Allow": allowed})
    return _DetailResponse(message, error.status_code, error.headers)


def _methods_at(request: Request) -> list[str]:
    """Return the methods of the endpoint at the request's path."""
    paths, requested = request.app.openapi()["paths"], request.url.path
    path = (
        requested if requested in paths else next((one for one in paths if compile_path(one)[0].match(requested)), None)
    )
    methods = {method.upper() for method in paths[path]} if path else {"GET"}
    return sorted(methods | {"HEAD"} if "GET" in methods else methods)


def _on_os_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, OSError)
    if is_disk_full(error):
        return _DetailResponse(
            f"The disk is full ({error.filename or 'data folder'}): free some space and try again", 507
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        _log.error("%s %s: %s", request.method, request.url.path, error)
        return _DetailResponse(f"The server has no access to {error.filename or 'its files'}: {error.strerror}", 500)
    return _on_unexpected_error(request, error)


def _on_unexpected_error(request: Request, error: Exception) -> JSONResponse:
    _log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return _DetailResponse(f"Internal error ({type(error).__name__}); see the server's log for the cause", 500)
