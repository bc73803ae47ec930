"""Output of the commands (results to standard output, errors to standard error) and the options they share."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from typing import Annotated, Any

import typer
from pydantic import BaseModel
from rich.console import Console, ConsoleOptions, RenderableType
from rich.measure import Measurement
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from merlina.client import DEFAULT_URL, Client

_MAX_TABLE_WIDTH = 100_000
# Characters that reorder the text around them and could disguise a name as another.
_REORDERING = {*"\u200e\u200f\u061c", *map(chr, range(0x202A, 0x202F)), *map(chr, range(0x2066, 0x206A))}


class SafeConsole(Console):
    """Prints control characters in names and rows as escapes, so that they cannot control the terminal."""

    def render_str(self, text: str, **options: Any) -> Text:
        """Escape before measuring, so that the columns of a table fit the escaped text."""
        return super().render_str(as_text(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(as_text(segment.text), segment.style)


def as_text(text: str) -> str:
    """Return the text with control characters, except line breaks and tabs, as escapes."""
    return "".join(_escaped(character) if _is_control(character) else character for character in text)


def _is_control(character: str) -> bool:
    return character in _REORDERING or (unicodedata.category(character) == "Cc" and character not in "\n\t")


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()


output = SafeConsole(highlight=False, soft_wrap=True)
errors = SafeConsole(stderr=True, highlight=False, soft_wrap=True)

Url = Annotated[str, typer.Option(envvar="MERLINA_URL", help="Address of the server.")]
ApiKey = Annotated[str | None, typer.Option(envvar="MERLINA_API_KEY", help="The server's API key, if it requires one.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]


def client(url: str = DEFAULT_URL, api_key: str | None = None) -> Client:
    """Return a client without retries, so that a command fails at once if no server responds."""
    return Client(url, api_key, retries=0)


def print_table(table: Table) -> None:
    """Print a table in its full width, since users copy ids from it and scripts parse them."""
    for column in table.columns:
        column.no_wrap = True
    wide = output.options.update(max_width=_MAX_TABLE_WIDTH)
    table.width = Measurement.get(output, wide, table).maximum
    output.print(table, crop=False, no_wrap=True)


def print_json(response: BaseModel) -> None:
    """Print a response as JSON, in which control characters are escapes, too; JSON requires that only of some."""
    text = response.model_dump_json(indent=2)
    typer.echo("".join(f"\\u{ord(sign):04x}" if _is_control(sign) else sign for sign in text))


def duration(seconds: float) -> str:
    """Return a duration such as 2 h 05 min, 3 min 07 s or 9 s."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
