"""`merlina jobs`, `status`, `logs`, `stop` and `pause`: show and control jobs."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from merlina.cli.console import ApiKey, AsJson, Url, client, output, print_json, print_table
from merlina.client import DEFAULT_URL
from merlina.domain.job_states import JobState

_STYLE = {
    "completed": "green",
    "failed": "red",
    "stopped": "yellow",
    "cancelled": "yellow",
    "queued": "dim",
    "paused": "dim",
}


def list_jobs(
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Maximum number of jobs.")] = 20,
    status: Annotated[JobState | None, typer.Option(help="List only jobs in this state.")] = None,
    as_json: AsJson = False,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """List jobs, newest first."""
    with client(url, api_key) as server:
        history = server.history(status, limit)
    if as_json:
        print_json(history)
        return
    table = Table(box=None, pad_edge=False)
    for title in ("job", "state", "progress", "model", "created"):
        table.add_column(title)
    for job in history.jobs:
        state = f"[{_STYLE.get(job.status, 'cyan')}]{job.status}[/]"
        table.add_row(job.job_id, state, f"{job.progress:.0%}", escape(job.output_name), job.created_at)
    print_table(table)
    if history.total > history.count:
        output.print(f"[dim]{history.count} of {history.total}; --limit shows more[/]")


def status(
    job_id: Annotated[str, typer.Argument(help="The job to show.")],
    as_json: AsJson = False,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Show the state and progress of a job."""
    with client(url, api_key) as server:
        job = server.status(job_id)
    if as_json:
        print_json(job)
        return
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, value in job.model_dump(exclude_none=True, exclude={"seq"}).items():
        table.add_row(
            f"[dim]{name.replace('_', ' ')}[/]", escape(f"{value:.6g}" if isinstance(value, float) else str(value))
        )
    print_table(table)


def logs(
    job_id: Annotated[str, typer.Argument(help="The job of which to show the log.")],
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="Number of lines from the end.")] = 100,
    as_json: AsJson = False,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Show the log of a run."""
    with client(url, api_key) as server:
        response = server.logs(job_id, limit)
    if as_json:
        print_json(response)
        return
    for line in response.logs:
        style = {"warning": "yellow", "error": "red"}.get(line.level, "dim")
        output.print(f"[dim]{line.timestamp}[/] [{style}]{escape(line.message)}[/]")


def stop(
    job_id: Annotated[str, typer.Argument(help="The job to stop.")],
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Stop a running job and save its model, or cancel a waiting one."""
    with client(url, api_key) as server:
        output.print(escape(server.stop(job_id).message))


def pause(
    job_id: Annotated[str, typer.Argument(help="The job to pause.")],
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Pause a waiting job at once, or a running one, which writes a checkpoint and releases its GPU. See `resume`."""
    with client(url, api_key) as server:
        output.print(escape(server.pause(job_id).message))
