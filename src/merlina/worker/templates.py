"""Chat templates: the tokenizer's own for the format `tokenizer`, and those that other formats save with the model.

To add a chat format, add its Jinja template to `_TEMPLATES`: the saved model's tokenizer gets it in place of its own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from merlina.data.conversation import Message, UnusableRowError
from merlina.errors import ModelError
from merlina.schemas.datasets.config import CustomTemplates, DatasetFormat, FormatType
from merlina.training.models.tokens import automatic_bos
from merlina.worker.rendering import render_template

_CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_LLAMA3 = (
    "<|begin_of_text|>{% for message in messages %}<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n"
    "{{ message['content'] }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
_MISTRAL = (
    "<s>{% set ns = namespace(system='') %}{% for message in messages %}"
    "{% if message['role'] == 'system' %}{% set ns.system = message['content'] + '\n\n' %}"
    "{% elif message['role'] == 'user' %}[INST] {{ ns.system + message['content'] }} [/INST]{% set ns.system = '' %}"
    "{% else %} {{ message['content'] }}</s>{% endif %}{% endfor %}"
)
_QWEN3_WITHOUT_REASONING = _CHATML.replace("assistant\n{% endif %}", "assistant\n<think>\n\n</think>\n\n{% endif %}")
# The shortest conversation that most templates accept, by the role of its first turn.
_SHORTEST = {"user": ("user",), "system": ("system", "user")}
# Whitespace and comments in front of a template, which would be rendered in front of the BOS.
_LEADING_BLANK = re.compile(r"\A(?:\s|\{#.*?#\})+", re.DOTALL)
_PROBE = "probe"
_TEMPLATES: dict[FormatType, str] = {"chatml": _CHATML, "qwen3": _CHATML, "llama3": _LLAMA3, "mistral": _MISTRAL}


def saved_template(tokenizer: Any, spec: DatasetFormat) -> Any:
    """Return the template of a finished model's tokenizer, which renders a BOS at the start if training had one there.

    The tokenizer adds no BOS of its own when it encodes a rendered text.
    """
    template = chat_template(spec) or tokenizer.chat_template
    if automatic_bos(tokenizer) is None or not isinstance(template, str):
        return template  # some tokenizers have several, by name
    template = _LEADING_BLANK.sub("", template)
    roles_without_bos = [role for role in _SHORTEST if _begins_without_bos(tokenizer, template, role)]
    if len(roles_without_bos) == len(_SHORTEST):
        return "{{ bos_token }}" + template
    conditions = " or ".join(f"messages[0]['role'] == '{role}'" for role in roles_without_bos)
    return f"{{% if {conditions} %}}{{{{ bos_token }}}}{{% endif %}}{template}" if roles_without_bos else template


def _begins_without_bos(tokenizer: Any, template: str, first: str) -> bool:
    turns = [{"role": role, "content": "a"} for role in _SHORTEST[first]]
    try:
        text = render_template(tokenizer, str(tokenizer.name_or_path), turns, chat_template=template)
    except (UnusableRowError, ModelError):
        return False  # the template refuses such a conversation
    return not text.startswith(tokenizer.bos_token)


def chat_template(spec: DatasetFormat) -> str | None:
    """Return the template of a model trained in this format; None if the tokenizer's own template stays."""
    if spec.format_type == "custom":
        assert spec.custom_templates is not None
        return _custom(spec.custom_templates)
    if spec.format_type == "qwen3" and not spec.enable_thinking:
        return _QWEN3_WITHOUT_REASONING
    return _TEMPLATES.get(spec.format_type)


def _custom(parts: CustomTemplates) -> str:
    def turn(prefix: str, suffix: str) -> str:
        # Jinja string literals, in which braces are text.
        return f"{{{{ {json.dumps(prefix)} + message['content'] + {json.dumps(suffix)} }}}}"

    return (
        "{% for message in messages %}{% if message['role'] == 'system' %}"
        f"{turn(parts.system_prefix, parts.system_suffix)}"
        "{% elif message['role'] == 'user' %}"
        f"{turn(parts.user_prefix, parts.user_suffix)}"
        "{% else %}"
        f"{turn(parts.assistant_prefix, parts.assistant_suffix)}"
        "{% endif %}{% endfor %}"
        f"{{% if add_generation_prompt %}}{{{{ {json.dumps(parts.assistant_prefix)} }}}}{{% endif %}}"
    )


@dataclass(eq=False)
class TokenizerTemplate:
    """The chat template of a tokenizer. Raises ModelError if it has none.

    Messages have a text as `content`, or typed parts if the template renders nothing else.
    """

    tokenizer: Any
    name: str

    def __post_init__(self) -> None:
        if not self.tokenizer.chat_template:
            raise ModelError(
                f"The tokenizer of {self.name!r} has no chat template, which the format 'tokenizer' needs; "
                "choose another, such as chatml"
            )

    @cached_property
    def special_tokens(self) -> tuple[str, ...]:
        """The texts of the tokenizer's special tokens."""
        added = self.tokenizer.added_tokens_decoder.values()
        return tuple(str(token) for token in added if token.special and str(token).strip())

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool,
        arguments: Mapping[str, Any],
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> str:
        """Return the messages as text. Raises UnusableRowError, ModelError."""
        turns = [self._turn(message) for message in messages]
        return render_template(
            self.tokenizer,
            self.name,
            turns,
            add_generation_prompt=add_generation_prompt,
            tools=list(tools) or None,
            **arguments,
        )

    def _turn(self, message: Message) -> dict[str, Any]:
        content = _typed(message.content) if self._needs_typed_parts else message.content
        turn: dict[str, Any] = {"role": message.role, "content": content, **message.tool_fields}
        if message.reasoning:
            turn["reasoning_content"] = message.reasoning
        if message.tool_calls:
            turn["tool_calls"] = list(message.tool_calls)
        return turn

    @cached_property
    def _needs_typed_parts(self) -> bool:
        return not self._renders(_PROBE) and self._renders(_typed(_PROBE))

    def _renders(self, content: Any) -> bool:
        turns = [{"role": "user", "content": content}]
        try:
            return _PROBE in render_template(self.tokenizer, self.name, turns, add_generation_prompt=True)
        except (UnusableRowError, ModelError):
            return False  # the template refuses such content or such a conversation


def _typed(text: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text}]
