"""A finished model's chat template gives what its format gave in training."""

from __future__ import annotations

from typing import Any

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from merlina.data.formats import formatter
from merlina.data.pairs import Message, Pair
from merlina.schemas.datasets import DatasetFormat
from merlina.worker.templates import chat_template

PROMPTS = [
    (Message("user", "Hi {{ x }}"),),
    (Message("system", "Be {brief}."), Message("user", "1"), Message("assistant", "2"), Message("user", "3")),
]
CUSTOM = {"system_prefix": "<s>{% raw %}", "system_suffix": "\n", "user_prefix": "U: '", "user_suffix": '"\\',
          "assistant_prefix": "ä: {{", "assistant_suffix": "}}"}  # fmt: skip


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize(
    "spec",
    [
        {"format_type": "chatml"},
        {"format_type": "llama3"},
        {"format_type": "mistral"},
        {"format_type": "qwen3", "enable_thinking": True},
        {"format_type": "qwen3", "enable_thinking": False},
        {"format_type": "custom", "custom_templates": CUSTOM},
    ],
)
def test_the_saved_template_renders_a_prompt_as_training_did(spec: dict[str, Any], prompt: tuple[Message, ...]) -> None:
    trained = DatasetFormat.model_validate(spec)
    template = chat_template(trained)
    assert template is not None
    turns = [{"role": turn.role, "content": turn.content} for turn in prompt]
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    rendered = environment.from_string(template).render(messages=turns, add_generation_prompt=True)
    assert rendered == formatter(trained, None)(Pair(prompt, "c", "r")).prompt


def test_the_models_own_template_is_kept_where_it_was_trained_in() -> None:
    assert chat_template(DatasetFormat(format_type="tokenizer")) is None
