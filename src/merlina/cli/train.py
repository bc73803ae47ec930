"""`merlina train`, `watch` and `resume`: start a run, or come back to one, and see it go."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from merlina.cli.config_file import read_config_file
from merlina.cli.console import ApiKey, Url, client, output
from merlina.cli.progress import show_progress
from merlina.client import DEFAULT_URL, Client
from merlina.schemas.jobs import Priority

EXIT_FAILED = 1
EXIT_STOPPED = 3
EXIT_DETACHED = 130


def train(
    file: Annotated[Path, typer.Argument(help="A TrainingConfig as JSON or YAML.")],
    priority: Annotated[Priority, typer.Option(help="Place in the queue.")] = "normal",
    preemptible: Annotated[
        bool, typer.Option(help="With low priority: make way while a run of high priority waits for the place.")
    ] = False,
    detach: Annotated[bool, typer.Option(help="Submit only; don't watch.")] = False,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Submit a run and watch it. Ctrl-C leaves the run going."""
    config = read_config_file(file)
    with client(url, api_key) as server:
        created = server.train(config, priority, preemptible=preemptible)
        output.print(escape(created.message))
        for warning in created.warnings:
            output.print(f"  [yellow]{escape(warning)}[/]")
        if not detach:
            sys.exit(follow(server, created.job_id))


def watch(
    job_id: Annotated[str, typer.Argument(help="The run to watch.")],
    after: Annotated[int | None, typer.Option(help="Replay from this event on.")] = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Watch a run until it ends. Ctrl-C leaves the run going."""
    with client(url, api_key) as server:
        sys.exit(follow(server, job_id, after))


def resume(
    job_id: Annotated[str, typer.Argument(help="A failed, stopped or paused run.")],
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Go on with a run from its last checkpoint, and watch it."""
    with client(url, api_key) as server:
        output.print(escape(server.resume(job_id).message))
        sys.exit(follow(server, job_id))


def follow(server: Client, job_id: str, after: int | None = None) -> int:
    """Shows a run until it ends and returns the command's exit code."""
    try:
        last = show_progress(server.watch(job_id, after), output)
    except KeyboardInterrupt:
        output.print(
            f"\n{job_id} goes on without you. Come back: merlina watch {job_id}. Stop it: merlina stop {job_id}"
        )
        return EXIT_DETACHED
    return _say_how_it_ended(last)


def _say_how_it_ended(last: dict[str, Any]) -> int:
    if last["type"] == "completed":
        where = f"the model is in {last['output_dir']}" if last["output_dir"] else "its model is gone"
        output.print(f"[green]completed[/]: {escape(where)}")
        return 0
    if last["type"] == "error":
        output.print(f"[red]failed[/]: {escape(last['error'] or 'no reason is known')}")
        return EXIT_FAILED
    saved = f"; what it had is in {last['output_dir']}" if last.get("output_dir") else ""
    output.print(f"[yellow]{last['status']}[/]{escape(saved)}")
    return EXIT_STOPPED
