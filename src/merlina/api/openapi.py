"""The OpenAPI description, with the errors that every route can answer and FastAPI doesn't know of."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from merlina.schemas.system import ErrorAnswer

_EVERYWHERE = {
    "401": "An API key is set, and the request carries neither it nor a session",
    "403": "A foreign Host or Origin, or a path outside the allowed folders",
    "429": "An API key is set, and too many wrong ones came from this address",
}
_WITH_INPUT = {"400": "The request is not valid", "404": "What it names is not there"}
_WITH_BODY = {
    "413": "The body is over its limit",
    "503": "Too much is asked at the same time",
    "507": "The disk is full",
}
_SCHEMA_NAME = "ErrorAnswer"


def describe(app: FastAPI, sub_path: str = "") -> dict[str, Any]:
    """Return the description, built once and then kept. `sub_path` is the path of DOMAIN, if it has one."""
    if app.openapi_schema is None:
        schema = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
        if sub_path:
            schema["servers"] = [{"url": sub_path}]
        schemas = schema.setdefault("components", {}).setdefault("schemas", {})
        schemas[_SCHEMA_NAME] = ErrorAnswer.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas |= schemas[_SCHEMA_NAME].pop("$defs", {})
        for operations in schema["paths"].values():
            for operation in operations.values():
                _add_errors(operation)
        for unused in ("HTTPValidationError", "ValidationError"):
            schemas.pop(unused, None)
        app.openapi_schema = schema
    return app.openapi_schema


def _add_errors(operation: dict[str, Any]) -> None:
    responses = operation["responses"]
    responses.pop("422", None)  # a bad request is 400 here
    errors = dict(_EVERYWHERE)
    if "parameters" in operation or "requestBody" in operation:
        errors |= _WITH_INPUT
    if "requestBody" in operation:
        errors |= _WITH_BODY
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{_SCHEMA_NAME}"}}}
    for status, description in errors.items():
        responses.setdefault(status, {"description": description})
    for status, response in responses.items():
        if int(status) >= 400:
            response.setdefault("content", content)
        for found in response.get("content", {}).values():
            # FastAPI calls what isn't JSON a string, even where its schema is named.
            if "$ref" in found["schema"]:
                found["schema"].pop("type", None)
