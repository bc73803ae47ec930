"""Rendering of chat templates, which are untrusted programs, within limits of time, memory and output length."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jinja2 import TemplateError

from merlina.data.conversation import UnusableRowError
from merlina.errors import ModelError
from merlina.worker.helper.phases import PHASES
from merlina.worker.resource_limits import CpuTimeExceededError, cpu_seconds, memory_headroom

_MAX_CPU_SECONDS = 2.0
# Limit for a single operation of C code, which nothing in this process can interrupt.
_MAX_SECONDS = 10.0
_MAX_MEMORY_MB = 512
_MAX_ADDED_CHARACTERS = 1024**2
_MAX_COPIES = 4


def render_template(tokenizer: Any, name: str, turns: list[dict[str, Any]], /, **options: Any) -> str:
    """Render the conversation with the template of the tokenizer `name`, or with the one in `options`.

    Other `options` may be arguments of a row, with any names. Raises UnusableRowError if the template refuses the
    conversation, ModelError if it exceeds a limit.
    """
    of_row = [value for name, value in options.items() if name != "chat_template"]
    input_length = _text_length([turns, of_row])
    subject = f"The chat template of {name!r}"
    try:
        with (
            PHASES.during(f"Rendering the chat template of {name!r}", _MAX_SECONDS, ModelError),
            memory_headroom(_MAX_MEMORY_MB),
            cpu_seconds(_MAX_CPU_SECONDS),
        ):
            text = str(tokenizer.apply_chat_template(turns, tokenize=False, **options))
    except CpuTimeExceededError:
        raise ModelError(f"{subject} computes for more than {_MAX_CPU_SECONDS:g} s on one row; correct it") from None
    except RecursionError:
        raise ModelError(f"{subject} recurses infinitely; correct it") from None
    except TemplateError as error:
        raise UnusableRowError(f"the model's chat template cannot render it: {error}") from error
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        message = f"{type(error).__name__}: {error}"
        raise UnusableRowError(f"the model's chat template cannot render it: {message}") from error
    if len(text) > _MAX_COPIES * input_length + _MAX_ADDED_CHARACTERS:
        raise ModelError(f"{subject} renders {len(text):,} characters from a row of {input_length:,}; correct it")
    return text


def _text_length(value: Any) -> int:
    """Return the number of characters in all texts of a value."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(map(_text_length, value.values()))
    return sum(map(_text_length, value)) if isinstance(value, (list, tuple)) else 0
