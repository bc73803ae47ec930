"""`merlina validate` and `preview`: what a run would do, before it does."""

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
from merlina.schemas.datasets import PreviewResponse
from merlina.schemas.validation import MemoryEstimate, ValidationChecks, ValidationResponse, ValidationResults

ConfigFile = Annotated[Path, typer.Argument(help="A TrainingConfig as JSON or YAML.")]


def validate(file: ConfigFile, as_json: AsJson = False, url: Url = DEFAULT_URL, api_key: ApiKey = None) -> None:
    """Check a configuration against the server's machine, model and data. Exits with 1 where it can't be run."""
    try:
        config = read_config_file(file)
        with client(url, api_key) as server:
            answer = server.validate(config)
    except (InvalidRequestError, NotFoundError) as error:
        if not as_json:
            raise
        answer = _refused(error)
    if as_json:
        print_json(answer)
    else:
        _show_results(answer.results)
        output.print("[green]valid[/]: it can be run" if answer.valid else "[red]not valid[/]: it can't be run")
    sys.exit(0 if answer.valid else 1)


def preview(
    file: ConfigFile,
    raw: Annotated[bool, typer.Option("--raw", help="Rows as they are, not as they are trained on.")] = False,
    as_json: AsJson = False,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Show the first pairs of a configuration's data set as the text and tokens that are trained on."""
    config = read_config_file(file)
    dataset, token = config.dataset, config.secrets().get("hf_token")
    with client(url, api_key) as server:
        if raw:
            answer = server.preview(dataset, token)
        else:
            spoken_to = dataset.model_copy(update={"model_name": dataset.model_name or config.base_model})
            answer = server.preview_formatted(spoken_to, config.max_length, config.max_prompt_length, token)
    if as_json:
        print_json(answer)
    elif raw:
        _show_rows(answer)
    else:
        _show_pairs(answer)


def _refused(error: InvalidRequestError | NotFoundError) -> ValidationResponse:
    """Return, in the form of the server's answer, what is wrong with a file that holds no configuration."""
    findings = list(error.findings) if isinstance(error, InvalidRequestError) else []
    findings = findings or [Finding(error.message)]
    names = ("gpu_available", "vram_sufficient", "disk_space_ok", "model_accessible", "dataset_valid")
    results = ValidationResults(
        errors=[str(finding) for finding in findings],
        warnings=[],
        findings=findings,
        checks=ValidationChecks(**dict.fromkeys(names, False)),
        not_checked=[f"{name}: the file holds no valid configuration" for name in names],
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
        basis = f"as fast as {results.time.earlier_run}" if results.time.earlier_run else "by this processor's speed"
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


def _show_rows(answer: PreviewResponse) -> None:
    for row, sample in enumerate(answer.samples, start=1):
        output.print(f"[bold]{row}[/]")
        for name, value in sample.items():
            output.print(f"  [cyan]{escape(name)}[/]: {escape(str(value))}")
    _show_rest(answer)


def _show_pairs(answer: PreviewResponse) -> None:
    for sample in answer.samples:
        output.print(f"[bold]{sample['row']}[/]")
        for name in ("prompt", "chosen", "rejected"):
            output.print(f"  [cyan]{name}[/]{_token_count(sample, name)}: {escape(str(sample[name]))}")
    _show_rest(answer)


def _show_rest(answer: PreviewResponse) -> None:
    of_all = f" of {answer.total_rows:,}" if answer.total_rows is not None else ""
    output.print(f"[dim]{answer.num_samples}{of_all} rows shown[/]")
    for line in [*answer.warnings, *(finding.message for finding in answer.findings)]:
        output.print(f"[yellow]·[/] {escape(line)}")


def _token_count(sample: dict[str, Any], name: str) -> str:
    tokens, cut = sample.get("tokens", {}).get(name), sample.get("cut", {}).get(name)
    if tokens is None:
        return ""
    return f" [dim]({tokens['count']} tokens{f', {cut} cut' if cut else ''})[/]"
