"""The OpenAPI schema that the page is built from.

`python -m tests.ui.openapi` writes it; a test fails if it does not match the API.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from merlina.api.app import create_app
from merlina.settings import Settings

FILE = Path(__file__).parents[2] / "ui/src/api/openapi.json"


def openapi_schema() -> str:
    with tempfile.TemporaryDirectory() as folder:
        app = create_app(Settings(data_dir=Path(folder) / "data", models_dir=Path(folder) / "models", _env_file=None))
        schema = {**app.openapi(), "info": {"title": app.title, "version": ""}}
    return json.dumps(schema, indent=1, sort_keys=True) + "\n"


if __name__ == "__main__":
    FILE.write_text(openapi_schema())
