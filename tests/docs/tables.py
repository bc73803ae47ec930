"""The tables of settings and fields in the documentation, made of the code they describe.

python -m tests.docs.tables        writes them into the pages
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from pydantic import SecretStr
from pydantic.fields import FieldInfo

from merlina.schemas.training import TrainingConfig
from merlina.settings import Settings

DOCS = Path(__file__).parents[2] / "docs"


def fields_table() -> str:
    """Every field of a TrainingConfig."""
    rows = ["| field | default | what it is |", "| --- | --- | --- |"]
    for name, info in TrainingConfig.model_fields.items():
        rows.append(f"| `{name}` | {_default(info)} | {_range(info)}{info.description or 'see data sets'} |")
    return "\n".join(rows)


def settings_table() -> str:
    """Every setting of the server."""
    rows = ["| setting | default | what it is |", "| --- | --- | --- |"]
    for name, info in Settings.model_fields.items():
        rows.append(f"| `{name.upper()}` | {_default(info)} | {info.description} |")
    return "\n".join(rows)


TABLES = {"choosing-settings.md": ("fields", fields_table), "server.md": ("settings", settings_table)}


def with_table(text: str, name: str, table: str) -> str:
    """The page with what stands between the marks of that name replaced."""
    marks = re.compile(rf"<!-- {name} -->.*?<!-- /{name} -->", re.DOTALL)
    return marks.sub(lambda _: f"<!-- {name} -->\n{table}\n<!-- /{name} -->", text)


def _default(info: FieldInfo) -> str:
    if info.is_required():
        return "needed"
    value: Any = info.get_default(call_default_factory=True, validated_data={})
    if value is None or value in ("", []) or isinstance(value, SecretStr):
        return ""
    return f"`{value}`" if isinstance(value, (str, Path)) else f"`{json.dumps(value)}`"


def _range(info: FieldInfo) -> str:
    bounds = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    said = [
        f"{sign} {getattr(rule, name):g}"
        for rule in info.metadata
        for name, sign in bounds.items()
        if hasattr(rule, name)
    ]
    return f"{', '.join(said)}; " if said else ""


def main() -> None:
    for page, (name, table) in TABLES.items():
        path = DOCS / page
        path.write_text(with_table(path.read_text(), name, table()))


if __name__ == "__main__":
    main()
