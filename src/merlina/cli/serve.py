"""`merlina serve`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from merlina.errors import InvalidRequestError
from merlina.schemas.parsing.validation_errors import describe
from merlina.settings import Settings


def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 takes a free one.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Folder of database, uploads and runs.")] = None,
    models_dir: Annotated[Path | None, typer.Option(help="Folder of finished models.")] = None,
) -> None:
    """Start the server. Settings come from the environment and .env; these options go before both."""
    from merlina.api import server

    given = {"host": host, "port": port, "data_dir": data_dir, "models_dir": models_dir}
    server.serve(read_settings({name: value for name, value in given.items() if value is not None}))


def read_settings(options: dict[str, Any]) -> Settings:
    """Raises InvalidRequestError with one line a setting that can't be."""
    try:
        return Settings(**options)
    except ValidationError as error:
        lines = [line.split(":", 1) for line in describe(error, Settings)]
        raise InvalidRequestError(
            "The settings are not valid", [f"{name.upper()}:{text}" for name, text in lines]
        ) from error
