"""`merlina validate` and `preview`: check a configuration and show its training data before a run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from merlina.cli.config_file import read_config_file
from merlina.cli.console import ApiKey, AsJson, Url, client, duration, output, print_json, print_table
from merlina.client import DEFAULT_URL
from merlina.domain.units import GIB, MIB, gib
from merlina.errors import Finding, InvalidRequestError, NotFoundError
from merlina.schemas.datasets.responses import DetectedFormat, PreviewResponse
from merlina.schemas.validation import MemoryEstimate, ValidationChecks, ValidationResponse, ValidationResults

ConfigFile = Annotated[Path, typer.Argument(help="A TrainingConfig as JSON or YAML.")]


def validate(file: ConfigFile, as_json: AsJson = False, url: Url = DEFAULT_URL, api_key: ApiKey = None) -> None:
    """Check a configuration against the server's machine, the model and the data. Exits with 1 if it is not valid."""
    try:
        config = read_config_file(file)
        with client(url, api_key) as server:
            response = server.validate(config)
    except (InvalidRequestError, NotFoundError) as error:
        if not as_json:
            raise
        response = _refused(error)
    if as_json:
        print_json(response)
    else:
        _show_results(response.results)
        output.print(
            "[green]valid[/]: the run can start" if response.valid else "[red]not valid[/]: the run cannot start"
        )
    sys.exit(0 if response.valid else 1)


def preview(
    file: ConfigFile,
    raw: Annotated[
        bool, typer.Option("--raw", help="Show rows as they are in the file instead of formatted pairs.")
    ] = False,
    as_json: AsJson = False,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Show the first pairs of a configuration's data set as formatted for training."""
    config = read_config_file(file)
    dataset, token = config.dataset, config.secrets().get("hf_token")
    with client(url, api_key) as server:
        if raw:
            response = server.preview(dataset, token)
        else:
            # The fields of the run that decide how its rows are read.
            run_fields = {"model_name": dataset.model_name or config.base_model, "training_mode": config.training_mode}
            as_trained = dataset.model_copy(update=run_fields)
            response = server.preview_formatted(as_trained, config.max_length, config.max_prompt_length, token)
    if as_json:
        print_json(response)
    elif raw:
        _show_rows(response)
    else:
        _show_pairs(response)


def _refused(error: InvalidRequestError | NotFoundError) -> ValidationResponse:
    """Return an invalid configuration file's errors in the form of the server's response."""
    findings = list(error.findings) if isinstance(error, InvalidRequestError) else []
    findings = findings or [Finding(error.message)]
    names = ("gpu_available", "vram_sufficient", "disk_space_ok", "model_accessible", "dataset_valid")
    results = ValidationResults(
        errors=[str(finding) for finding in findings],
        warnings=[],
        findings=findings,
        checks=ValidationChecks(**dict.fromkeys(names, False)),
        not_checked=[f"{name}: the file is not a valid configuration" for name in names],
    )
    return ValidationResponse(valid=False, results=results)


def _show_results(results: ValidationResults) -> None:
    for style, lines in (("red", results.errors), ("yellow", results.warnings)):
        for line in lines:
            output.print(f"[{style}]·[/] {escape(line)}")
    for line in results.not_checked:
        output.print(f"[dim]· not checked: {escape(line)}[/]")
    if results.memory is not None:
        print_table(_memory_table(results.memory))
    if results.time is not None:
        basis = (
            f"at the speed of {results.time.earlier_run}" if results.time.earlier_run else "at this processor's speed"
        )
        output.print(f"about {duration(results.time.seconds)} for {results.time.steps:,} steps, {basis}")


def _memory_table(memory: MemoryEstimate) -> Table:
    title = (
        f"{memory.place}: about {gib(memory.expected_mb * MIB)} expected, at least {gib(memory.minimum_mb * MIB)}; "
        f"{gib(memory.free_mb * MIB)} free"
    )
    table = Table(title=title, box=None, pad_edge=False)
    table.add_column("part")
    table.add_column("GiB", justify="right")
    for part, size in memory.parts_mb.items():
        table.add_row(part, f"{size * MIB / GIB:,.2f}")
    return table


def _show_rows(response: PreviewResponse) -> None:
    for row, sample in enumerate(response.samples, start=1):
        output.print(f"[bold]{row}[/]")
        for name, value in sample.items():
            output.print(f"  [cyan]{escape(name)}[/]: {escape(str(value))}")
    _show_rest(response)


def _show_pairs(response: PreviewResponse) -> None:
    for sample in response.samples:
        output.print(f"[bold]{sample['row']}[/]")
        show_pair(sample)
    _show_rest(response)


def show_pair(sample: dict[str, Any]) -> None:
    """Print the texts of a formatted preview's sample, with their numbers of tokens if they are known."""
    # An sft run may have no rejected answers, and an unpaired answer has no counterpart.
    for name in (name for name in ("prompt", "chosen", "rejected") if sample[name] is not None):
        output.print(f"  [cyan]{name}[/]{_token_count(sample, name)}: {escape(str(sample[name]))}")


def _show_rest(response: PreviewResponse) -> None:
    total = f" of {response.total_rows:,}" if response.total_rows is not None else ""
    output.print(f"[dim]{response.num_samples}{total} rows shown[/]")
    show_detected_format(response.detected_format)
    for line in [*response.warnings, *(finding.message for finding in response.findings)]:
        output.print(f"[yellow]·[/] {escape(line)}")


def show_detected_format(found: DetectedFormat | None) -> None:
    """Print the detected format of a data set's rows."""
    output.print(f"[dim]detected: {found.title}[/]" if found else "[dim]the format of the rows is not known[/]")


def _token_count(sample: dict[str, Any], name: str) -> str:
    tokens, cut = sample.get("tokens", {}).get(name), sample.get("cut", {}).get(name)
    if tokens is None:
        return ""
    return f" [dim]({tokens['count']} tokens{f', {cut} truncated' if cut else ''})[/]"
