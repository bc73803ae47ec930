"""`merlina train`, `watch` and `resume`: start or continue a run and show its progress."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from merlina.cli.config_file import read_config_file
from merlina.cli.console import ApiKey, Url, client, output
from merlina.cli.progress import show_progress
from merlina.client import DEFAULT_URL, Client
from merlina.schemas.jobs import Priority
from merlina.schemas.messages import CompletedMessage, ErrorMessage, JobMessage, StatusUpdate

EXIT_FAILED = 1
EXIT_STOPPED = 3
EXIT_DETACHED = 130


def train(
    file: Annotated[Path, typer.Argument(help="A TrainingConfig as JSON or YAML.")],
    priority: Annotated[Priority, typer.Option(help="Priority in the queue.")] = "normal",
    preemptible: Annotated[
        bool, typer.Option(help="With low priority: pause the run while a high-priority job needs its slot or GPU.")
    ] = False,
    detach: Annotated[bool, typer.Option(help="Submit the job without watching it.")] = False,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Submit a job and watch it. Ctrl-C ends watching, not the run.

    Exits with 0 if the run completed, 1 if it failed, 3 if it was stopped or cancelled, and 130 after Ctrl-C.
    """
    config = read_config_file(file)
    with client(url, api_key) as server:
        created = server.train(config, priority, preemptible=preemptible)
        output.print(escape(created.message))
        for warning in created.warnings:
            output.print(f"  [yellow]{escape(warning)}[/]")
        if not detach:
            sys.exit(follow(server, created.job_id))


def watch(
    job_id: Annotated[str, typer.Argument(help="The job to watch.")],
    after: Annotated[int | None, typer.Option(help="Replay the events after this sequence number.")] = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Watch a job until it ends. Ctrl-C ends watching, not the run. Exits as `train` does."""
    with client(url, api_key) as server:
        sys.exit(follow(server, job_id, after))


def resume(
    job_id: Annotated[str, typer.Argument(help="A failed, stopped, cancelled or paused job.")],
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Resume a run from its newest checkpoint and watch it. Exits as `train` does."""
    with client(url, api_key) as server:
        output.print(escape(server.resume(job_id).message))
        sys.exit(follow(server, job_id))


def follow(server: Client, job_id: str, after: int | None = None) -> int:
    """Show a run until it ends and return the command's exit code."""
    try:
        last = show_progress(server.watch(job_id, after), output)
    except KeyboardInterrupt:
        output.print(
            f"\n{job_id} continues on the server. Watch it: merlina watch {job_id}. Stop it: merlina stop {job_id}"
        )
        return EXIT_DETACHED
    return _show_end(last)


def _show_end(last: JobMessage | None) -> int:
    if isinstance(last, CompletedMessage):
        where = f"the model is in {last.output_dir}" if last.output_dir else "its model no longer exists"
        output.print(f"[green]completed[/]: {escape(where)}")
        return 0
    if isinstance(last, ErrorMessage):
        output.print(f"[red]failed[/]: {escape(last.error or 'the reason is unknown')}")
        return EXIT_FAILED
    assert isinstance(last, StatusUpdate)
    saved = f"; the model is in {last.output_dir}" if last.output_dir else ""
    output.print(f"[yellow]{last.status}[/]{escape(saved)}")
    return EXIT_STOPPED
