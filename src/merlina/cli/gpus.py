"""`merlina gpus`: list the server's GPUs."""

from __future__ import annotations

from rich.markup import escape
from rich.table import Table

from merlina.cli.console import ApiKey, AsJson, Url, client, output, print_json, print_table
from merlina.client import DEFAULT_URL


def gpus(as_json: AsJson = False, url: Url = DEFAULT_URL, api_key: ApiKey = None) -> None:
    """List the server's GPUs."""
    with client(url, api_key) as server:
        response = server.gpus()
    if as_json:
        print_json(response)
        return
    if not response.gpus:
        output.print(f"{response.message}: runs train on the CPU")
        return
    table = Table(box=None, pad_edge=False)
    for title in ("gpu", "name", "free MiB", "total MiB", "% busy", "°C", "W"):
        table.add_column(title, justify="left" if title == "name" else "right")
    for gpu in response.gpus:
        known = (gpu.utilization_percent, gpu.temperature_c, gpu.power_usage_w)
        facts = ["?" if fact is None else f"{fact:g}" for fact in known]
        free, total = f"{gpu.memory_free_mb:,}", f"{gpu.memory_total_mb:,}"
        table.add_row(str(gpu.index), escape(gpu.name), free, total, *facts)
    print_table(table)
