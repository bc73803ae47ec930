"""`merlina configs …`: manage configurations saved on the server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from merlina.cli.config_file import read_mapping
from merlina.cli.console import ApiKey, AsJson, Url, client, output, print_json, print_table
from merlina.client import DEFAULT_URL

commands = typer.Typer(no_args_is_help=True)
Name = Annotated[str, typer.Argument(help="The configuration's name.")]


@commands.command("list")
def list_all(
    tag: Annotated[str | None, typer.Option(help="List only configurations with this tag.")] = None,
    as_json: AsJson = False,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """List saved configurations."""
    with client(url, api_key) as server:
        response = server.saved_configs(tag)
    if as_json:
        print_json(response)
        return
    table = Table(box=None, pad_edge=False)
    for title in ("name", "tags", "changed", "description"):
        table.add_column(title)
    for entry in response.configs:
        table.add_row(entry.name, escape(", ".join(entry.tags)), entry.updated_at, escape(entry.description))
    print_table(table)


@commands.command()
def show(name: Name, url: Url = DEFAULT_URL, api_key: ApiKey = None) -> None:
    """Print a saved configuration as JSON."""
    with client(url, api_key) as server:
        typer.echo(json.dumps(server.saved_config(name).config, indent=2, ensure_ascii=False))


@commands.command()
def save(
    name: Name,
    file: Annotated[Path, typer.Argument(help="A TrainingConfig, or part of one, as JSON or YAML.")],
    description: Annotated[str | None, typer.Option(help="Purpose of the configuration.")] = None,
    tag: Annotated[list[str] | None, typer.Option(help="A tag; can be repeated.")] = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Save a configuration on the server, without its tokens."""
    with client(url, api_key) as server:
        output.print(escape(server.save_config(name, read_mapping(file), description, tag).message))


@commands.command()
def delete(name: Name, url: Url = DEFAULT_URL, api_key: ApiKey = None) -> None:
    """Delete a saved configuration."""
    with client(url, api_key) as server:
        output.print(escape(server.delete_config(name).message))


@commands.command()
def export(
    name: Name,
    output_path: Annotated[str, typer.Argument(help="File to write on the server's machine.")],
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Write a saved configuration to a file on the server's machine."""
    with client(url, api_key) as server:
        output.print(escape(server.export_config(name, output_path).message))


@commands.command("import")
def import_(
    filepath: Annotated[str, typer.Argument(help="File to read on the server's machine.")],
    name: Annotated[str | None, typer.Option(help="Name to save it under; defaults to the name in the file.")] = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Save a configuration from a file on the server's machine."""
    with client(url, api_key) as server:
        output.print(escape(server.import_config(filepath, name).message))
