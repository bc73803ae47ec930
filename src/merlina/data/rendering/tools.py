"""Tools of a conversation, in the form in which transformers passes them to chat templates."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from merlina.data.conversation import UnusableRowError

_FIELDS_OF_TOOL_MESSAGES = ("name", "tool_call_id")
# More than any description has, and far less than the recursion of digests, templates and JSON allows.
_MAX_LEVELS = 64


def read_tools(value: Any) -> tuple[Mapping[str, Any], ...]:
    """Return the descriptions of tools in a `tools` column: objects, or their JSON. Raises UnusableRowError."""
    tools = parsed(value) or []
    if not isinstance(tools, list) or not all(isinstance(tool, Mapping) for tool in tools):
        raise UnusableRowError("tools is not a list of objects, each with the name and parameters of a function")
    return tuple(map(without_nulls, tools))


def read_tool_calls(value: Any, column: str) -> tuple[Mapping[str, Any], ...]:
    """Return the calls of an assistant's message, with `arguments` as an object. Raises UnusableRowError."""
    calls = parsed(value) or []
    if isinstance(calls, Mapping):
        calls = [calls]
    if not isinstance(calls, list):
        raise UnusableRowError(f"{column} has tool_calls that are not a list")
    return tuple(_call(item, column) for item in calls)


def read_tool_fields(item: Mapping[str, Any]) -> Mapping[str, str]:
    """Return the fields of a tool's message that state which call it answers."""
    return {name: item[name] for name in _FIELDS_OF_TOOL_MESSAGES if isinstance(item.get(name), str)}


def _call(item: Any, column: str) -> Mapping[str, Any]:
    function = item.get("function", item) if isinstance(item, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise UnusableRowError(f"{column} has a tool call without the name of a function")
    arguments = without_nulls(parsed(function.get("arguments") or {}))
    call = {"type": "function", "function": {"name": function["name"], "arguments": arguments}}
    return {**call, "id": item["id"]} if isinstance(item.get("id"), str) else call


def parsed(value: Any) -> Any:
    """Return the value that a text of JSON stands for; other values, and other texts, as they are."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def without_nulls(value: Any, levels: int = _MAX_LEVELS) -> Any:
    """Remove keys without a value, which columnar files add so that all objects have the same keys.

    Raises UnusableRowError for a value that is nested in more than `levels` levels.
    """
    if not isinstance(value, (Mapping, list)):
        return value
    if levels == 0:
        raise UnusableRowError(f"it has tools or arguments that are nested more than {_MAX_LEVELS} levels deep")
    if isinstance(value, Mapping):
        return {name: without_nulls(inner, levels - 1) for name, inner in value.items() if inner is not None}
    return [without_nulls(inner, levels - 1) for inner in value]
