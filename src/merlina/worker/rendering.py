"""A chat template is a program that came with a model: it is rendered within limits of time, memory and length."""

from __future__ import annotations

from typing import Any

from jinja2 import TemplateError

from merlina.data.pairs import UnusableRowError
from merlina.errors import ModelError
from merlina.worker.helper.phases import PHASES
from merlina.worker.resource_limits import CpuTimeExceededError, cpu_seconds, memory_headroom

_CPU_SECONDS = 2.0
# For a single operation of C code, which nothing in this process can interrupt.
_SECONDS = 10.0
_MEMORY_MB = 512
_ADDED_CHARACTERS = 1024**2
_MOST_COPIES = 4


def render_template(tokenizer: Any, name: str, turns: list[dict[str, str]], **options: Any) -> str:
    """Return the conversation as the template of the tokenizer of `name`, or the one in `options`, renders it.

    Raises UnusableRowError where it refuses the conversation, ModelError where it exceeds a limit.
    """
    given = sum(len(turn["content"]) for turn in turns)
    whose = f"The chat template of {name!r}"
    try:
        with (
            PHASES.during(f"Rendering the chat template of {name!r}", _SECONDS, ModelError),
            memory_headroom(_MEMORY_MB),
            cpu_seconds(_CPU_SECONDS),
        ):
            text = str(tokenizer.apply_chat_template(turns, tokenize=False, **options))
    except CpuTimeExceededError:
        raise ModelError(f"{whose} computes for more than {_CPU_SECONDS:g} s on one row; correct it") from None
    except RecursionError:
        raise ModelError(f"{whose} calls itself without an end; correct it") from None
    except TemplateError as error:
        raise UnusableRowError(f"the model's chat template can't render it: {error}") from error
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        message = f"{type(error).__name__}: {error}"
        raise UnusableRowError(f"the model's chat template can't render it: {message}") from error
    if len(text) > _MOST_COPIES * given + _ADDED_CHARACTERS:
        raise ModelError(f"{whose} makes {len(text):,} characters of a row of {given:,}; correct it")
    return text
