"""The report of `merlina data` as text."""

from __future__ import annotations

from rich.markup import escape
from rich.table import Table

from merlina.cli.check import show_pair
from merlina.cli.console import output, print_table
from merlina.schemas.datasets.responses import DataFinding, LengthHistogram
from merlina.schemas.inspection import DataReport, PairCharacters, PairTokens, TokenLengths

_BAR_WIDTH = 40


def show_report(report: DataReport) -> None:
    """Print the report as tables, findings and the first pair as it is trained on."""
    print_table(_summary(report))
    if report.token_lengths is not None:
        _show_lengths(report.token_lengths, report.pairs)
    output.print("\n[bold]findings[/]" if report.findings else "\n[bold]no findings[/]")
    for finding in report.findings:
        output.print(f"[yellow]·[/] {escape(_with_setting(finding))}")
    output.print(f"\n[bold]row {report.example['row']:,} as it is trained on[/]")
    show_pair(report.example)


def _summary(report: DataReport) -> Table:
    found = report.detected_format
    rows = [
        ("format", f"{found.title} ({found.name})" if found else "not known; read as columns of text"),
        *(("encoding", note) for note in report.notes),
        ("rows", f"{report.rows:,} read, {report.rows - report.skipped:,} usable, {report.skipped:,} skipped"),
        ("pairs" if report.mean_characters.rejected else "answers", f"{report.pairs:,}"),
        ("mean characters", _means(report.mean_characters)),
    ]
    if report.mean_tokens is not None:
        rows.append(("mean tokens", _means(report.mean_tokens)))
    table = Table(box=None, pad_edge=False, show_header=False)
    for name, value in rows:
        table.add_row(f"[dim]{name}[/]", escape(value))
    return table


def _means(means: PairCharacters | PairTokens) -> str:
    if not means.rejected:
        return f"prompt {means.prompt:,.0f}, answer {means.chosen:,.0f}"
    return f"prompt {means.prompt:,.0f}, chosen {means.chosen:,.0f}, rejected {means.rejected:,.0f}"


def _show_lengths(lengths: TokenLengths, pairs: int) -> None:
    output.print("\n[bold]tokens of the prompt with its longest answer[/]")
    print_table(_histogram(lengths.histogram))
    output.print(
        f"median {lengths.histogram.median:,}, 95% have at most {lengths.percentile_95:,}, longest "
        f"{lengths.histogram.longest:,}; "
        f"{lengths.over_max_length:,} of {pairs:,} ({lengths.over_max_length / pairs:.1%}) are longer than max_length, "
        f"{lengths.max_length:,}"
    )


def _histogram(histogram: LengthHistogram) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    for justify in ("right", "left", "right"):
        table.add_column(justify=justify)
    most = max(histogram.counts)
    for first, end, pairs in zip(histogram.edges[:-1], histogram.edges[1:], histogram.counts, strict=True):
        bar = "█" * -(-_BAR_WIDTH * pairs // most)
        tokens = f"{first:,}" if end == first + 1 else f"{first:,} - {end - 1:,}"
        table.add_row(tokens, f"[cyan]{bar}[/]", f"{pairs:,}")
    return table


def _with_setting(finding: DataFinding) -> str:
    """Return the finding's message with the setting of a run that resolves it, if there is one."""
    return f"{finding.message}. dataset.{finding.option}: true resolves it" if finding.option else finding.message
