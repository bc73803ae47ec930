"""Where commands write: results to standard output, errors to standard error; and the options they share."""

from __future__ import annotations

from typing import Annotated

import typer
from pydantic import BaseModel
from rich.console import Console

from merlina.client import DEFAULT_URL, Client

output = Console(highlight=False, soft_wrap=True)
errors = Console(stderr=True, highlight=False, soft_wrap=True)

Url = Annotated[str, typer.Option(envvar="MERLINA_URL", help="The server to speak to.")]
ApiKey = Annotated[str | None, typer.Option(envvar="MERLINA_API_KEY", help="The server's API key, where it has one.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]


def client(url: str = DEFAULT_URL, api_key: str | None = None) -> Client:
    """Without retries: who types a command sees at once that nobody answers."""
    return Client(url, api_key, retries=0)


def print_json(answer: BaseModel) -> None:
    typer.echo(answer.model_dump_json(indent=2))


def duration(seconds: float) -> str:
    """As 2 h 05 min, 3 min 07 s or 9 s."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
