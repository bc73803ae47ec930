"""A row's own arguments for the model's chat template, as in TRL's column `chat_template_kwargs`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from merlina.data.conversation import UnusableRowError
from merlina.data.rendering.tools import parsed, without_nulls

ARGUMENTS_COLUMN = "chat_template_kwargs"
# Parameters of transformers' `apply_chat_template` other than `documents`, and names that it or Jinja sets. All others
# are variables of the template.
NOT_FROM_ROWS = frozenset(
    {
        "self",
        "conversation",
        "conversations",
        "messages",
        "sanitize_control_tokens",
        "tools",
        "chat_template",
        "add_generation_prompt",
        "continue_final_message",
        "tokenize",
        "padding",
        "truncation",
        "max_length",
        "return_tensors",
        "return_dict",
        "return_assistant_tokens_mask",
        "tokenizer_kwargs",
    }
)


def read_template_arguments(value: Any) -> Mapping[str, Any]:
    """Return the arguments in a column: an object, or its JSON. Raises UnusableRowError.

    Keys without a value are left out, because columnar files add them.
    """
    given = parsed(value)
    arguments = {} if given is None else without_nulls(given)
    if not isinstance(arguments, Mapping):
        raise UnusableRowError(f'{ARGUMENTS_COLUMN} is not an object, such as {{"enable_thinking": false}}')
    refused = next((name for name in arguments if name in NOT_FROM_ROWS), None)
    if refused is not None:
        what_to_do = (
            "put them into the column tools"
            if refused == "tools"
            else "it decides how the chat template is applied, which is the same for all rows; remove it"
        )
        raise UnusableRowError(f"{ARGUMENTS_COLUMN} has {refused!r}; {what_to_do}")
    return arguments
