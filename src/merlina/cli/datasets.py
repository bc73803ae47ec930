"""`merlina datasets …`: data sets uploaded to the server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError
from rich.filesize import decimal
from rich.markup import escape
from rich.table import Table

from merlina.cli.console import ApiKey, AsJson, Url, client, output, print_json, print_table
from merlina.client import DEFAULT_URL
from merlina.errors import InvalidRequestError, NotFoundError
from merlina.schemas.datasets import DatasetConfig
from merlina.schemas.parsing.validation_errors import describe

commands = typer.Typer(no_args_is_help=True)
DatasetId = Annotated[str, typer.Argument(help="The id that the upload was answered with.")]


@commands.command("list")
def list_all(as_json: AsJson = False, url: Url = DEFAULT_URL, api_key: ApiKey = None) -> None:
    """List uploaded data sets, newest first."""
    with client(url, api_key) as server:
        answer = server.uploads()
    if as_json:
        print_json(answer)
        return
    table = Table(box=None, pad_edge=False)
    for title in ("data set", "file", "rows", "size", "uploaded"):
        table.add_column(title)
    for entry in answer.datasets:
        size = decimal(entry.size)
        table.add_row(entry.dataset_id, escape(entry.filename), f"{entry.total_rows:,}", size, entry.created_at)
    print_table(table)


@commands.command()
def upload(
    file: Annotated[Path, typer.Argument(help="A json, jsonl, csv or parquet file.")],
    as_json: AsJson = False,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Upload a data set."""
    if not file.is_file():
        raise NotFoundError(f"There is no file {str(file)!r}")
    with client(url, api_key) as server:
        answer = server.upload(file)
    if as_json:
        print_json(answer)
    else:
        output.print(f"{answer.dataset_id}: {answer.total_rows:,} rows, {answer.file_format}, {decimal(answer.size)}")


@commands.command()
def columns(dataset_id: DatasetId, as_json: AsJson = False, url: Url = DEFAULT_URL, api_key: ApiKey = None) -> None:
    """Show the columns of an uploaded data set, and what column_mapping they suggest."""
    try:
        dataset = DatasetConfig.model_validate({"source": {"source_type": "upload", "dataset_id": dataset_id}})
    except ValidationError as error:
        raise InvalidRequestError(f"{dataset_id!r} is no data set's id", describe(error, DatasetConfig)) from error
    with client(url, api_key) as server:
        answer = server.columns(dataset)
    if as_json:
        print_json(answer)
        return
    for name in answer.columns:
        target = answer.suggested_mapping.get(name)
        output.print(escape(name) + (f" [dim]→ {target}[/]" if target else ""))
    output.print(f"[dim]{answer.total_rows:,} rows[/]" if answer.total_rows is not None else "")


@commands.command()
def delete(
    dataset_id: DatasetId,
    force: Annotated[bool, typer.Option("--force", help="Delete it even if a job needs it to run or resume.")] = False,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Delete an uploaded data set. One that a job needs to run or to resume is deleted only with --force."""
    with client(url, api_key) as server:
        output.print(escape(server.delete_upload(dataset_id, force=force).message))
