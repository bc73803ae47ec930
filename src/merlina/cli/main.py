"""The `merlina` command: registers all commands and prints errors."""

from __future__ import annotations

import io
import sys

import typer
from rich.markup import escape

from merlina.cli import bench, chat, check, configs, datasets, gpus, jobs, serve, train
from merlina.cli.console import errors
from merlina.cli.data.command import data
from merlina.cli.demo.command import demo
from merlina.errors import InvalidRequestError, MerlinaError
from merlina.version import current

commands = typer.Typer(
    name="merlina",
    help="Fine-tune language models on preference pairs, on your own machine.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
commands.command()(serve.serve)
commands.command()(check.validate)
commands.command()(check.preview)
commands.command()(data)
commands.command()(train.train)
commands.command()(train.watch)
commands.command()(train.resume)
commands.command()(jobs.status)
commands.command("jobs")(jobs.list_jobs)
commands.command()(jobs.logs)
commands.command()(jobs.stop)
commands.command()(jobs.pause)
commands.command()(chat.chat)
commands.command()(gpus.gpus)
commands.command()(bench.bench)
commands.add_typer(datasets.commands, name="datasets", help="Upload, list and delete data sets.")
commands.add_typer(configs.commands, name="configs", help="Save, list, show, export, import and delete configurations.")
commands.command()(demo)


def _show_version(is_requested: bool) -> None:
    if is_requested:
        typer.echo(f"merlina {current()}")
        raise typer.Exit


@commands.callback()
def options(
    version: bool = typer.Option(
        False, "--version", callback=_show_version, is_eager=True, help="Show version and commit."
    ),
) -> None:
    """Fine-tune language models on preference pairs, on your own machine."""


def app() -> None:
    """Run the command line; the entry point of the installed `merlina`."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # a reader of a pipe sees the progress at once
    try:
        commands()
    except MerlinaError as error:
        errors.print(f"[red]{escape(error.message)}[/]")
        if isinstance(error, InvalidRequestError):
            for finding in error.errors:
                errors.print(f"  [red]·[/] {escape(finding)}")
        sys.exit(1)


if __name__ == "__main__":
    app()
