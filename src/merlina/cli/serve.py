"""`merlina serve`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from merlina.errors import InvalidRequestError
from merlina.schemas.parsing.validation_errors import describe
from merlina.settings import Settings


def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 selects a free one.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Folder for the database, uploads and runs.")] = None,
    models_dir: Annotated[Path | None, typer.Option(help="Folder for finished models.")] = None,
) -> None:
    """Start the server. These options override settings from the environment and .env."""
    from merlina.api import server

    given = {"host": host, "port": port, "data_dir": data_dir, "models_dir": models_dir}
    server.serve(read_settings({name: value for name, value in given.items() if value is not None}))


def read_settings(options: dict[str, Any]) -> Settings:
    """Return the settings from options, environment and .env. Raises InvalidRequestError with a finding per setting."""
    try:
        return Settings(**options)
    except ValidationError as error:
        findings = [replace(one, field=one.field and one.field.upper()) for one in describe(error, Settings)]
        raise InvalidRequestError("The settings are not valid", findings) from error
