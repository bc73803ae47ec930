"""The OpenAPI description, extended by the errors of all routes and the messages of the WebSocket."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from merlina.schemas.completions import CompletionErrorResponse
from merlina.schemas.messages import LiveMessage
from merlina.schemas.system import ErrorResponse

_EVERYWHERE = {
    "401": "The server requires an API key, and the request has neither the key nor a session",
    "403": "A foreign Host or Origin header, or a path outside the allowed folders",
    "429": "Too many wrong API keys from this address",
}
_WITH_INPUT = {"400": "The request is not valid", "404": "The requested resource does not exist"}
_WITH_BODY = {
    "413": "The body exceeds its size limit",
    "503": "Too many requests at the same time",
    "507": "The disk is full",
}


def describe(app: FastAPI, sub_path: str = "") -> dict[str, Any]:
    """Return the description, which is built at the first call. `sub_path` is the path of DOMAIN, if it has one."""
    if app.openapi_schema is None:
        schema = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
        if sub_path:
            schema["servers"] = [{"url": sub_path}]
        schemas = schema.setdefault("components", {}).setdefault("schemas", {})
        for model in (ErrorResponse, CompletionErrorResponse, LiveMessage):
            described = model.model_json_schema(ref_template="#/components/schemas/{model}", mode="serialization")
            schemas |= described.pop("$defs", {})
            schemas[model.__name__] = described
        for path, operations in schema["paths"].items():
            for operation in operations.values():
                _add_errors(operation, _error_schema(path))
        for unused in ("HTTPValidationError", "ValidationError"):
            schemas.pop(unused, None)
        app.openapi_schema = schema
    return app.openapi_schema


def _error_schema(path: str) -> dict[str, Any]:
    """Return the schema of a path's errors; those of middleware have the same form everywhere."""
    models = (CompletionErrorResponse, ErrorResponse) if path.startswith("/v1/") else (ErrorResponse,)
    references = [{"$ref": f"#/components/schemas/{model.__name__}"} for model in models]
    return references[0] if len(references) == 1 else {"anyOf": references}


def _add_errors(operation: dict[str, Any], error_schema: dict[str, Any]) -> None:
    responses = operation["responses"]
    responses.pop("422", None)  # an invalid request is 400 here
    errors = dict(_EVERYWHERE)
    if "parameters" in operation or "requestBody" in operation:
        errors |= _WITH_INPUT
    if "requestBody" in operation:
        errors |= _WITH_BODY
    content = {"application/json": {"schema": error_schema}}
    for status, description in errors.items():
        responses.setdefault(status, {"description": description})
    for status, response in responses.items():
        if int(status) >= 400:
            response.setdefault("content", content)
        for found in response.get("content", {}).values():
            # FastAPI gives responses that are not JSON the type string, even if they refer to a schema.
            if "$ref" in found["schema"]:
                found["schema"].pop("type", None)
