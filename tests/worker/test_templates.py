"""A finished model's chat template renders prompts as its format did in training."""

from __future__ import annotations

from typing import Any, get_args

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from merlina.data.conversation import Message, Pair, assistant
from merlina.data.rendering.chat_formats import formatter
from merlina.schemas.datasets.config import DatasetFormat, FormatType
from merlina.worker.encoding import PairEncoder
from merlina.worker.templates import chat_template, saved_template
from tests.tiny import build_tiny_sentencepiece_tokenizer

pytestmark = pytest.mark.slow

PROMPTS = [
    (Message("user", "Hi {{ x }}"),),
    (Message("system", "Be {brief}."), Message("user", "1"), Message("assistant", "2"), Message("user", "3")),
]
CUSTOM = {"system_prefix": "<s>{% raw %}", "system_suffix": "\n", "user_prefix": "U: '", "user_suffix": '"\\',
          "assistant_prefix": "ä: {{", "assistant_suffix": "}}"}  # fmt: skip


SPECS = [
    {"format_type": "chatml"},
    {"format_type": "llama3"},
    {"format_type": "mistral"},
    {"format_type": "qwen3", "enable_thinking": True},
    {"format_type": "qwen3", "enable_thinking": False},
    {"format_type": "custom", "custom_templates": CUSTOM},
]


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("spec", SPECS)
def test_the_saved_template_renders_a_prompt_as_training_did(spec: dict[str, Any], prompt: tuple[Message, ...]) -> None:
    trained = DatasetFormat.model_validate(spec)
    template = chat_template(trained)
    assert template is not None
    turns = [{"role": turn.role, "content": turn.content} for turn in prompt]
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    rendered = environment.from_string(template).render(messages=turns, add_generation_prompt=True)
    assert rendered == formatter(trained, None)(Pair(prompt, assistant("c"), assistant("r"))).prompt


def test_every_format_is_compared_with_the_template_that_is_saved() -> None:
    assert {spec["format_type"] for spec in SPECS} == {*get_args(FormatType)} - {"tokenizer", "raw"}


def test_the_models_own_template_is_kept_if_the_run_used_it() -> None:
    assert chat_template(DatasetFormat(format_type="tokenizer")) is None


@pytest.mark.parametrize("bos", ["<s>", "<|begin_of_text|>", None])
@pytest.mark.parametrize("begins", ["prepend", "first"])
@pytest.mark.parametrize("spec", [*SPECS, {"format_type": "tokenizer"}])
def test_the_finished_tokenizer_encodes_a_prompt_as_in_training(
    spec: dict[str, Any], begins: str, bos: str | None
) -> None:
    """The custom format has the BOS in some prompts only, before a system message."""
    tokenizer = build_tiny_sentencepiece_tokenizer(begins, bos)
    tokenizer.chat_template = chat_template(DatasetFormat(format_type="chatml"))
    trained = DatasetFormat.model_validate(spec)
    encoder = PairEncoder(tokenizer, "it", trained, 512, 256)
    ids = [encoder.encode(Pair(prompt, assistant("c"), assistant("r"))).tokens.prompt for prompt in PROMPTS]
    tokenizer.chat_template = saved_template(tokenizer, trained)
    for prompt, expected in zip(PROMPTS, ids, strict=True):
        turns = [{"role": turn.role, "content": turn.content} for turn in prompt]
        assert tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False) == expected
        assert bos is None or expected.count(tokenizer.bos_token_id) == 1


def test_a_saved_template_renders_nothing_in_front_of_the_bos() -> None:
    tokenizer = build_tiny_sentencepiece_tokenizer("first", "<s>")
    trained = DatasetFormat(format_type="tokenizer")
    tokenizer.chat_template = "{# published #}\n\n{{ bos_token }}" + str(
        chat_template(DatasetFormat(format_type="chatml"))
    )
    encoder = PairEncoder(tokenizer, "it", trained)
    expected = encoder.encode(Pair(PROMPTS[0], assistant("c"), None)).tokens.prompt
    tokenizer.chat_template = saved_template(tokenizer, trained)
    turns = [{"role": turn.role, "content": turn.content} for turn in PROMPTS[0]]
    assert tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False) == expected
    assert expected.count(tokenizer.bos_token_id) == 1


def test_a_template_without_system_messages_has_the_same_beginning() -> None:
    tokenizer = build_tiny_sentencepiece_tokenizer("prepend", "<s>")
    tokenizer.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}{{ messages[0]['content'] }}"
    )
    tokenizer.chat_template = saved_template(tokenizer, DatasetFormat(format_type="tokenizer"))
    assert tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False) == "<s>Hi"
