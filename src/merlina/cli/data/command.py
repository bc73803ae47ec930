"""`merlina data`: examines the rows of a data set on this machine, without a server."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from merlina.cli.console import AsJson, errors, print_json
from merlina.cli.data.option_names import with_option_names
from merlina.cli.data.report import show_report
from merlina.cli.serve import read_settings
from merlina.domain.data_urls import FileLocation, RemoteFile
from merlina.errors import DataError, InvalidRequestError, NotFoundError
from merlina.executors.helper_pools import HelperPools, Repo
from merlina.preflight.models import model_repos
from merlina.schemas.datasets.config import DatasetConfig, FormatType, RowFormat, TrainingMode
from merlina.schemas.datasets.sources import Encoding, FileFormat
from merlina.schemas.inspection import DataReport
from merlina.schemas.operations import DescribeData
from merlina.schemas.parsing.validation_errors import describe
from merlina.schemas.training.config import TrainingConfig, default_prompt_length
from merlina.schemas.training.steps import MAX_TEXT_TOKENS

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
_FILE_SUFFIXES = {".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".gz", ".zst"}
_TIMEOUT_SECONDS = 24 * 3600.0
_IDLE_SECONDS = 60.0


def data(
    rows: Annotated[
        str,
        typer.Argument(
            metavar="FILE",
            help="A json, jsonl, csv, tsv or parquet file; text may be compressed (.gz, .zst). `org/name` reads a "
            "data set on the Hub, and an address (https://, s3://, gs://) the file there.",
        ),
    ],
    model: Annotated[
        str | None, typer.Option(help="Model with the tokenizer that counts tokens: Hub id, folder or `.gguf` file.")
    ] = None,
    format_type: Annotated[
        FormatType | None,
        typer.Option(
            "--format",
            help="Chat format. Default: chatml; with --model, tokenizer: the model's own.",
            show_default=False,
        ),
    ] = None,
    training_mode: Annotated[
        TrainingMode,
        typer.Option(help="Training method: sft needs no rejected answers, kto also accepts unpaired ones."),
    ] = "orpo",
    max_length: Annotated[
        int | None,
        typer.Option(
            min=16,
            max=MAX_TEXT_TOKENS,
            help="With --model: maximum length of a prompt with its answer, in tokens. Default: 2048.",
            show_default=False,
        ),
    ] = None,
    max_samples: Annotated[int | None, typer.Option(min=1, help="Read at most this number of rows.")] = None,
    mapping: Annotated[
        list[str] | None,
        typer.Option(
            "--map",
            metavar="COLUMN=NAME",
            help="Read a column as prompt, chosen, rejected, system, reasoning, completion or label. May be repeated.",
        ),
    ] = None,
    row_format: Annotated[
        RowFormat | None, typer.Option(help="Layout of the rows. Default: detected.", show_default=False)
    ] = None,
    file_format: Annotated[
        FileFormat | None,
        typer.Option(
            help="Format of the file. Default: detected from its name, else from its content.", show_default=False
        ),
    ] = None,
    encoding: Annotated[
        Encoding | None, typer.Option(help="Encoding of the file. Default: detected.", show_default=False)
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Split of a data set on the Hub. Default: train.", show_default=False)
    ] = None,
    config_name: Annotated[
        str | None,
        typer.Option(
            help="Configuration (subset) of a data set on the Hub. Default: its own default.", show_default=False
        ),
    ] = None,
    revision: Annotated[
        str | None,
        typer.Option(help="Branch, tag or commit id on the Hub. Default: the newest commit.", show_default=False),
    ] = None,
    data_files: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN",
            help="File of a repository on the Hub, or a pattern such as `data/*.parquet`. May be repeated.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Examine all rows of a data file, without a server: format, problems, lengths, and a pair as it is trained on.

    Exits with 1 if no row can be used.
    """
    if max_length is not None and model is None:
        raise InvalidRequestError("--max-length is in tokens, which --model is needed to count")
    of_file = {"file_format": file_format, "encoding": encoding}
    of_hub = {"split": split, "config_name": config_name, "revision": revision, "data_files": data_files or None}
    content = {
        "source": _source(rows, of_file, of_hub),
        "format": {"format_type": format_type or ("tokenizer" if model else "chatml")},
        "model_name": model,
        "training_mode": training_mode,
        "max_samples": max_samples,
        "column_mapping": dict(map(_mapped, mapping)) if mapping else None,
        "row_format": row_format,
    }
    try:
        config = _config(rows, content)
        report = _examine(config, max_length or TrainingConfig.model_fields["max_length"].default)
    except DataError as error:
        raise DataError(with_option_names(error.message)) from error
    findings = [each.model_copy(update={"message": with_option_names(each.message)}) for each in report.findings]
    report = report.model_copy(update={"findings": findings})
    if as_json:
        print_json(report)
    else:
        show_report(report)


def _mapped(text: str) -> tuple[str, str]:
    """Return the column and the name that `--map` gives to it. Raises InvalidRequestError."""
    column, found, name = text.rpartition("=")
    if not (found and column and name):
        raise InvalidRequestError(f"--map {text!r} should have the form COLUMN=NAME, such as reply=completion")
    return column, name


def _config(rows: str, content: dict[str, Any]) -> DatasetConfig:
    """Return the configuration of the data set. Raises InvalidRequestError."""
    format_type = content["format"]["format_type"]
    if format_type == "tokenizer" and content["model_name"] is None:
        raise InvalidRequestError("--format tokenizer uses the chat template of a model, which --model must name")
    if format_type == "custom":
        raise InvalidRequestError("--format custom has no templates here; use `merlina preview` with a configuration")
    try:
        return DatasetConfig.model_validate(content)
    except ValidationError as error:
        # An address that is not valid may contain a password.
        what = "The address" if "://" in rows else repr(rows)
        findings = [
            replace(each, message=with_option_names(each.message), field=each.field and with_option_names(each.field))
            for each in describe(error, DatasetConfig)
        ]
        raise InvalidRequestError(f"{what} cannot be read", findings) from None


def _source(rows: str, of_file: Mapping[str, Any], of_hub: Mapping[str, Any]) -> dict[str, Any]:
    """Return the source of the rows, with the options that were given for its kind: a file, an address or the Hub.

    Raises NotFoundError, DataError, and InvalidRequestError if an option is for the other kind.
    """
    is_there = os.path.exists(rows)  # unlike the method of Path, it never raises
    if not is_there and "://" in rows:
        _refuse_given(of_hub, "is for data sets on the Hub, not for an address")
        return {"source_type": "url", "url": rows, **of_file}
    if not is_there and _HUB_ID.fullmatch(rows) and PurePath(rows).suffix.lower() not in _FILE_SUFFIXES:
        _refuse_given(of_file, f"is for files, and {rows!r} is a data set on the Hub")
        return {"source_type": "huggingface", "repo_id": rows, **of_hub}
    if os.path.isdir(rows):
        raise DataError(f"{rows!r} is a folder; name one of its files")
    if is_there and not os.path.isfile(rows):
        raise DataError(f"{rows!r} is not a regular file; its rows are read more than once")
    try:
        Path(rows).open("rb").close()
    except OSError as error:
        raise NotFoundError(f"{rows!r} cannot be read: {error.strerror}") from error
    _refuse_given(of_hub, f"is for data sets on the Hub, and {rows!r} is a file")
    return {"source_type": "local_file", "file_path": rows, **of_file}


def _refuse_given(options: Mapping[str, Any], problem: str) -> None:
    """Raise InvalidRequestError if one of the options was given."""
    for name, value in options.items():
        if value is not None:
            raise InvalidRequestError(f"--{name.replace('_', '-')} {problem}")


def _examine(config: DatasetConfig, max_length: int) -> DataReport:
    settings, source = read_settings({}), config.source
    file: FileLocation | None = Path(source.file_path) if source.file_path else None
    if source.url:
        # The user of the command may read any address.
        file = RemoteFile(source.url, settings.allowed_urls.with_hosts_of([source.url]).entries)
    operation = DescribeData(
        config=config,
        file=file,
        token=settings.hub_token(),
        max_row_mb=settings.max_row_size_mb,
        max_length=max_length,
        max_prompt_length=default_prompt_length(max_length),
        trust_remote_code=settings.trust_remote_code,
    )
    repos = [Repo("dataset", source.repo_id)] if source.repo_id else []
    repos += model_repos(config.model_name, settings.trust_remote_code) if config.model_name else []
    with tempfile.TemporaryDirectory(prefix="merlina-data-") as folder, _row_counter() as on_rows:
        helpers = HelperPools.build(_IDLE_SECONDS, Path(folder) / "helper.log", spares=None)
        try:
            return helpers.call(operation, repos, files=[file], timeout=_TIMEOUT_SECONDS, on_rows=on_rows)
        finally:
            helpers.close()


@contextlib.contextmanager
def _row_counter() -> Iterator[Callable[[int], None]]:
    """Show the number of rows that were read so far on standard error, if it is a terminal."""
    columns = (SpinnerColumn(), TextColumn("{task.completed:,} rows read"), TimeElapsedColumn())
    with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as progress:
        task = progress.add_task("", total=None)
        yield lambda rows: progress.update(task, completed=rows)
