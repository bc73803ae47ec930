"""`merlina datasets …`: manage data sets uploaded to the server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError
from rich.filesize import decimal
from rich.markup import escape
from rich.table import Table

from merlina.cli.check import show_detected_format
from merlina.cli.console import ApiKey, AsJson, Url, client, output, print_json, print_table
from merlina.client import DEFAULT_URL
from merlina.errors import InvalidRequestError, NotFoundError
from merlina.schemas.datasets.config import DatasetConfig
from merlina.schemas.parsing.validation_errors import describe

commands = typer.Typer(no_args_is_help=True)
DatasetId = Annotated[str, typer.Argument(help="The id that `upload` printed.")]


@commands.command("list")
def list_all(as_json: AsJson = False, url: Url = DEFAULT_URL, api_key: ApiKey = None) -> None:
    """List uploaded data sets, newest first."""
    with client(url, api_key) as server:
        response = server.uploads()
    if as_json:
        print_json(response)
        return
    table = Table(box=None, pad_edge=False)
    for title in ("data set", "file", "rows", "size", "uploaded"):
        table.add_column(title)
    for entry in response.datasets:
        size = decimal(entry.size)
        table.add_row(entry.dataset_id, escape(entry.filename), f"{entry.total_rows:,}", size, entry.created_at)
    print_table(table)


@commands.command()
def upload(
    file: Annotated[
        Path, typer.Argument(help="A json, jsonl, csv, tsv or parquet file; text may be compressed (.gz, .zst).")
    ],
    as_json: AsJson = False,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Upload a data set."""
    if not file.is_file():
        raise NotFoundError(f"There is no file {str(file)!r}")
    with client(url, api_key) as server:
        response = server.upload(file)
    if as_json:
        print_json(response)
    else:
        output.print(
            f"{response.dataset_id}: {response.total_rows:,} rows, {response.file_format}, {decimal(response.size)}"
        )


@commands.command()
def columns(dataset_id: DatasetId, as_json: AsJson = False, url: Url = DEFAULT_URL, api_key: ApiKey = None) -> None:
    """Show the columns of an uploaded data set and the suggested column_mapping."""
    try:
        dataset = DatasetConfig.model_validate({"source": {"source_type": "upload", "dataset_id": dataset_id}})
    except ValidationError as error:
        raise InvalidRequestError(
            f"{dataset_id!r} is not a valid data set id", describe(error, DatasetConfig)
        ) from error
    with client(url, api_key) as server:
        response = server.columns(dataset)
    if as_json:
        print_json(response)
        return
    for name in response.columns:
        target = response.suggested_mapping.get(name)
        output.print(escape(name) + (f" [dim]→ {target}[/]" if target else ""))
    show_detected_format(response.detected_format)
    output.print(f"[dim]{response.total_rows:,} rows[/]" if response.total_rows is not None else "")


@commands.command()
def delete(
    dataset_id: DatasetId,
    force: Annotated[bool, typer.Option("--force", help="Delete it even if a job needs it to run or resume.")] = False,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Delete an uploaded data set. If a job needs it to run or to resume, --force is required."""
    with client(url, api_key) as server:
        output.print(escape(server.delete_upload(dataset_id, force=force).message))
