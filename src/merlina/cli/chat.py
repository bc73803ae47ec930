"""`merlina chat`: chat with a job's model or its base model in the terminal, or get one answer in a script."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, field
from typing import Annotated

import typer
from pydantic import ValidationError
from rich.markup import escape

from merlina.cli.console import ApiKey, Url, as_text, client, errors, output
from merlina.client import DEFAULT_URL, Client
from merlina.errors import InvalidRequestError, MerlinaError
from merlina.schemas.chat import MAX_MESSAGE_LENGTH, AnswerEnds, AnswerRequest, AnswerText, ChatMessage, Side
from merlina.schemas.parsing.validation_errors import describe

_HELP = "/new starts a new conversation, /base and /tuned switch the model, Ctrl-C ends an answer, Ctrl-D the chat."
EXIT_INTERRUPTED = 130


def chat(
    job_id: Annotated[str, typer.Argument(help="The job whose model answers.")],
    question: Annotated[
        str | None, typer.Argument(help="Answer this question and exit. Default: read it from standard input.")
    ] = None,
    side: Annotated[Side, typer.Option(help="tuned: the trained model; base: the one before the run.")] = "tuned",
    system: Annotated[str | None, typer.Option(help="System message at the beginning of the conversation.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, max=8192, help="Maximum length of an answer in tokens.")] = 512,
    temperature: Annotated[float, typer.Option(min=0, max=2, help="0 selects greedy decoding.")] = 0.7,
    top_p: Annotated[float, typer.Option(help="Sample from the smallest set of tokens with this probability.")] = 0.95,
    seed: Annotated[int, typer.Option(min=0, help="Random seed.")] = 42,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Chat with the model of a finished job, or with its base model."""
    sampling = {"max_new_tokens": max_new_tokens, "temperature": temperature, "top_p": top_p, "seed": seed}
    with client(url, api_key) as server:
        conversation = Conversation(server, job_id, side, system, sampling)
        if question is None and sys.stdin.isatty():
            _converse(conversation)
            return
        try:
            conversation.ask(sys.stdin.read() if question is None else question)
        except KeyboardInterrupt:
            raise typer.Exit(EXIT_INTERRUPTED) from None


@dataclass
class Conversation:
    """A conversation with one side of a job's model; each answer is printed as it is generated."""

    server: Client
    job_id: str
    side: Side
    system: str | None
    sampling: dict[str, float]
    turns: list[ChatMessage] = field(default_factory=list)

    def ask(self, question: str) -> None:
        """Print the answer to the next question. The turn counts only if the answer was not interrupted.

        Raises InvalidRequestError, for instance for an empty question, and the errors of `Client.answer`.
        """
        opening = [] if self.system is None else [{"role": "system", "content": self.system}]
        turns = [*opening, *map(ChatMessage.model_dump, self.turns), {"role": "user", "content": question.strip()}]
        fields = {"job_id": self.job_id, "side": self.side, "messages": turns, **self.sampling}
        try:
            request = AnswerRequest.model_validate(fields)
        except ValidationError as error:
            raise InvalidRequestError("The question cannot be asked", describe(error, AnswerRequest)) from None
        pieces = []
        for event in self.server.answer(request):
            if isinstance(event, AnswerText):
                pieces.append(event.text)
                # Rich would replace names of emoji and tabs.
                typer.echo(as_text(event.text), nl=False)
            elif isinstance(event, AnswerEnds):
                output.print()
                if event.reason.startswith("max_"):
                    errors.print(f"[dim](truncated after {event.tokens} tokens: {event.reason})[/]")
        answer = "".join(pieces)
        if len(answer) > MAX_MESSAGE_LENGTH:
            errors.print("[dim](the answer is too long for a message, so the conversation continues without it)[/]")
        else:
            self.turns += [request.messages[-1], ChatMessage(role="assistant", content=answer)]


def _converse(conversation: Conversation) -> None:
    errors.print(f"[dim]{_HELP}[/]")
    while True:
        try:
            _follow(input("> ").strip(), conversation)
        except EOFError:
            output.print()
            return
        except KeyboardInterrupt:
            output.print()
        except MerlinaError as error:
            errors.print(f"[red]{escape(str(error))}[/]")


def _follow(line: str, conversation: Conversation) -> None:
    """Carry out a command, or ask the question that the line contains. Raises as `Conversation.ask`."""
    if line == "/new":
        conversation.turns.clear()
    elif line in ("/base", "/tuned"):
        conversation.side = "base" if line == "/base" else "tuned"
    elif re.fullmatch("/[a-z]+", line):
        errors.print(f"[red]{line} is not a command.[/] {_HELP}")
    elif line:
        conversation.ask(line)
