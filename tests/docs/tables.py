"""The documentation's tables of fields and settings, generated from the code.

`python -m tests.docs.tables` writes them into the pages; a test compares them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from merlina.schemas.training.config import TrainingConfig
from merlina.settings import Settings
from tests.docs.pages import FOLDER

_MARKED = "<!-- {name}: written by tests/docs/tables.py -->\n{table}\n<!-- end of {name} -->"


def fields_table() -> str:
    """Return the table of all fields of TrainingConfig, nested ones by their dotted path."""
    schema = TrainingConfig.model_json_schema()
    lines = ["| Field | Default | Allowed | Meaning |", "| --- | --- | --- | --- |"]
    for path, field, required in _fields(schema, schema["$defs"], {}):
        default = "required" if required else _code(field.get("default", "…"))
        lines.append(f"| `{path}` | {default} | {_allowed(field)} | {_escaped(field.get('description', ''))} |")
    return "\n".join(lines)


def settings_table() -> str:
    """Return the table of all settings of the server by environment variable."""
    properties = Settings.model_json_schema()["properties"]
    lines = ["| Variable | Default | Allowed | Meaning |", "| --- | --- | --- | --- |"]
    for name, field in properties.items():
        default = field.get("default", [])
        shown = "" if default in ("", None, []) else _code(default)
        lines.append(f"| `{name.upper()}` | {shown} | {_allowed(field)} | {_escaped(field['description'])} |")
    return "\n".join(lines)


TABLES = {
    FOLDER / "settings-of-a-run.md": ("fields", fields_table),
    FOLDER / "server.md": ("settings", settings_table),
}


def with_table(page: Path) -> str:
    """Return the page's text with the current table."""
    name, make = TABLES[page]
    block = _MARKED.format(name=name, table=make())
    pattern = re.escape(f"<!-- {name}:") + r".*?" + re.escape(f"<!-- end of {name} -->")
    text, count = re.subn(pattern, lambda _: block, page.read_text(), flags=re.DOTALL)
    assert count == 1, f"{page} has {count} places for the table {name}"
    return text


def _fields(
    schema: dict[str, Any], known: dict[str, Any], listed: dict[str, str], above: str = ""
) -> Iterator[tuple[str, Any, bool]]:
    """Yield path, schema and necessity of each field. `listed` has the path of each model whose fields are listed."""
    for name, field in schema["properties"].items():
        path, required = above + name, name in schema.get("required", ())
        models, container = _inner(field)
        if not models:
            meaning = {"description": schema["description"].split("\n")[0]} if above else {}
            yield path, {**meaning, **_defaults(name), **field}, required
            continue
        inner, *alternatives = models
        is_new = inner not in listed
        listed.setdefault(inner, path)
        if not is_new or container or "anyOf" in field:
            like = "" if is_new else f" like `{listed[inner]}`"
            like += "".join(f" or like `{listed[other]}`" for other in alternatives)
            yield path, {**field, "anyOf": [{"shown": _CONTAINERS[container].format(like=like)}]}, required
        if is_new:
            yield from _fields(known[inner], known, listed, f"{path}[]." if container else f"{path}.")


_CONTAINERS = {"": "object{like}", "list": "list of objects{like}", "names": "objects{like}, by name"}


def _inner(field: dict[str, Any]) -> tuple[list[str], str]:
    """Return the names of the models that a field may contain, none if it contains none, and in which container."""
    for option in (field, *field.get("anyOf", ()), *field.get("allOf", ())):
        places = {
            "": option,
            "list": option.get("items", {}),
            "names": next(iter(option.get("patternProperties", {}).values()), option.get("additionalProperties")),
        }
        for container, place in places.items():
            options = place.get("anyOf", [place]) if isinstance(place, dict) else []
            if models := [option["$ref"].rsplit("/", 1)[-1] for option in options if "$ref" in option]:
                return models, container
    return [], ""


def _defaults(name: str) -> dict[str, Any]:
    """Return the default that a function creates, which the schema omits."""
    field = TrainingConfig.model_fields.get(name)
    return {"default": field.default_factory()} if field and field.default_factory else {}  # type: ignore[call-arg]


def _allowed(field: dict[str, Any]) -> str:
    options = [option for option in field.get("anyOf", [field]) if option.get("type") != "null"]
    parts = [part for option in options if (part := _range(option))]
    return ", ".join(dict.fromkeys(parts))


def _range(option: dict[str, Any]) -> str:
    if "shown" in option:
        return str(option["shown"])
    if "enum" in option:
        return ", ".join(f"`{value}`" for value in option["enum"])
    if "const" in option:
        return f"`{option['const']}`"
    if option.get("type") == "array":
        kind, *bounds = _range(option["items"]).split(", ")
        return ", ".join([f"list of {kind}s", *bounds])
    if option.get("type") == "object":
        return "object"
    if option.get("type") == "boolean":
        return "`true`, `false`"
    if option.get("type") in ("integer", "number"):
        kind = "whole number" if option["type"] == "integer" else "number"
        bounds = _bounds(option)
        return f"{kind} {bounds}".strip()
    return _text(option) if option.get("type") == "string" else ""


def _bounds(option: dict[str, Any]) -> str:
    words = {"minimum": "from", "exclusiveMinimum": "above", "maximum": "to", "exclusiveMaximum": "below"}
    return " ".join(f"{word} {_number(option[key])}" for key, word in words.items() if key in option)


def _text(option: dict[str, Any]) -> str:
    if option.get("maxLength"):
        return f"string, up to {option['maxLength']:,} characters"
    return "path" if option.get("format") == "path" else "string"


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}" if value < 1e6 else f"{value:,.0f}"


def _code(value: Any) -> str:
    return f"`{value if isinstance(value, str) and value else json.dumps(value)}`"


def _escaped(text: str) -> str:
    return text.replace("|", r"\|")


if __name__ == "__main__":
    for path in TABLES:
        path.write_text(with_table(path))
