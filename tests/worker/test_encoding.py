"""What is trained on is, token for token, what the tokenizer makes of the whole text."""

from __future__ import annotations

import pytest

from merlina.data.pairs import Message, Pair
from merlina.schemas.datasets import DatasetFormat, FormatType
from merlina.worker.encoding import PairEncoder
from tests.tiny import build_tiny_sentencepiece_tokenizer

PAIR = Pair((Message("user", "What is the capital?"),), "Paris", " It is\nParis.")
ZEPHYR = (
    "{% for turn in messages %}{{ '<|' + turn['role'] + '|>\n' + turn['content'] + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


@pytest.mark.parametrize("begins", ["prepend", "first", "always"])
@pytest.mark.parametrize("name", ["mistral", "chatml", "tokenizer"])
def test_an_answer_has_the_ids_it_has_behind_its_prompt(name: FormatType, begins: str) -> None:
    tokenizer = build_tiny_sentencepiece_tokenizer(begins)
    tokenizer.chat_template = ZEPHYR
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    made = PairEncoder(tokenizer, "it", DatasetFormat(format_type=name), 512, 256).encode(PAIR)
    prompt = "<s>" + made.text.prompt.removeprefix("<s>")
    assert made.tokens.prompt == tokenizer.encode(prompt, add_special_tokens=False)
    assert made.text.rejected is not None
    for text, ids in ((made.text.chosen, made.tokens.chosen), (made.text.rejected, made.tokens.rejected)):
        assert made.tokens.prompt + ids == tokenizer.encode(prompt + text, add_special_tokens=False)
