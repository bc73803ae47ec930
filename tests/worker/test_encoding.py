"""The tokens that a run trains on are those of the whole text."""

from __future__ import annotations

from typing import Any

import pytest

from merlina.data.conversation import Message, Pair, assistant
from merlina.schemas.datasets.config import DatasetFormat, FormatType
from merlina.worker.encoding import PairEncoder
from tests.tiny import build_tiny_sentencepiece_tokenizer, build_tiny_tokenizer

pytestmark = pytest.mark.slow

PAIR = Pair((Message("user", "What is the capital?"),), assistant("Paris"), assistant(" It is\nParis."))
ZEPHYR = (
    "{% for turn in messages %}{{ '<|' + turn['role'] + '|>\n' + turn['content'] + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


@pytest.mark.parametrize("begins", ["prepend", "first", "always"])
@pytest.mark.parametrize("name", ["mistral", "chatml", "tokenizer"])
def test_an_answer_has_the_same_ids_as_after_its_prompt(name: FormatType, begins: str) -> None:
    tokenizer = build_tiny_sentencepiece_tokenizer(begins)
    tokenizer.chat_template = ZEPHYR
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    made = PairEncoder(tokenizer, "it", DatasetFormat(format_type=name), 512, 256).encode(PAIR)
    prompt = "<s>" + made.text.prompt.removeprefix("<s>")
    assert made.tokens.prompt == tokenizer.encode(prompt, add_special_tokens=False)
    assert made.text.rejected is not None
    for text, ids in ((made.text.chosen, made.tokens.chosen), (made.text.rejected, made.tokens.rejected)):
        assert made.tokens.prompt + ids == tokenizer.encode(prompt + text, add_special_tokens=False)


def ending_with(suffix: str) -> DatasetFormat:
    parts = {"user_prefix": "U: ", "user_suffix": "\n", "assistant_prefix": "A: ", "assistant_suffix": suffix}
    return DatasetFormat.model_validate({"format_type": "custom", "custom_templates": parts})


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A tokenizer whose EOS is <|im_end|>; <|eot|> is added to it as special, <|turn|> is not."""
    from transformers import AddedToken

    made = build_tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))
    made.add_tokens([AddedToken("<|eot|>", special=True)], special_tokens=True)
    made.add_tokens([AddedToken("<|turn|>", special=False)])
    return made


@pytest.mark.parametrize(
    ("suffix", "end"),
    [
        ("", "<|im_end|>"),
        ("<|im_end|>", "<|im_end|>"),
        ("<|im_end|>\n", "<|im_end|>"),
        ("<|eot|>", "<|eot|>"),
        ("\n<|turn|>\n\n", "<|turn|>"),
        ("[END]", "<|im_end|>"),  # some tokens that text also has: generation could not stop there
        ("\n\n", "<|im_end|>"),
    ],
)
@pytest.mark.parametrize("written", ["", "<|im_end|>", "<|im_end|>\n"])
def test_an_answer_ends_with_exactly_one_end_token(tokenizer: Any, suffix: str, end: str, written: str) -> None:
    """The data may already have an end token at the end of an answer (`written`)."""
    encoder = PairEncoder(tokenizer, "it", ending_with(suffix), 512, 256)
    pair = Pair((Message("user", "Hi"),), assistant(f"Yes.{written}"), assistant(f"No{written}"))
    made = encoder.encode(pair).tokens
    assert encoder.end_token == tokenizer.convert_tokens_to_ids(end)
    ends = {tokenizer.convert_tokens_to_ids(token) for token in ("<|im_end|>", "<|eot|>", "<|turn|>")}
    for answer, text in ((made.chosen, "Yes."), (made.rejected, "No")):
        assert answer[-1] == encoder.end_token
        if not (written and suffix.strip() == "[END]"):
            assert sum(token in ends for token in answer) == 1
        assert tokenizer.decode(answer).startswith(text)


@pytest.mark.parametrize("marker", ["<|turn|>", "<|eot|>", "<|im_end|>"])
def test_a_templates_end_marker_ends_the_answer_special_or_not(tokenizer: Any, marker: str) -> None:
    template = tokenizer.chat_template
    tokenizer.chat_template = template.replace("<|im_end|>", marker)
    try:
        made = PairEncoder(tokenizer, "it", DatasetFormat(format_type="tokenizer"), 512, 256).encode(PAIR)
    finally:
        tokenizer.chat_template = template
    for text, ids in ((made.text.chosen, made.tokens.chosen), (made.text.rejected, made.tokens.rejected)):
        assert tokenizer.decode(ids) == text
        assert ids.count(tokenizer.convert_tokens_to_ids(marker)) == 1
        assert ids[-1] == tokenizer.convert_tokens_to_ids(marker)


def test_an_answer_that_ends_in_an_unknown_character_has_its_end_token() -> None:
    """The unknown token is special, but does not end an answer."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1, "yes": 2, "no": 3}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="</s>")
    made = PairEncoder(tokenizer, "it", ending_with(""), 64, 32).encode(
        Pair((Message("user", "a"),), assistant("yes ☃"), assistant("no"))
    )
    assert made.tokens.chosen == [2, 0, 1]
    assert made.tokens.rejected == [3, 1]


@pytest.mark.parametrize(
    ("written", "end"),
    [
        ("Yes", "<|im_end|>"),
        ("Yes<|im_end|>", "<|im_end|>"),
        ("Yes<|im_end|>\n", "<|im_end|>"),
        ("Yes<|eot|>\n", "<|eot|>"),
    ],
)
def test_a_raw_answer_keeps_its_own_end_token_or_gets_one(tokenizer: Any, written: str, end: str) -> None:
    encoder = PairEncoder(tokenizer, "it", DatasetFormat(format_type="raw"))
    made = encoder.encode(Pair((Message("user", "<|im_start|>user\nHi"),), assistant(written), None)).tokens
    assert tokenizer.decode(made.prompt) == "<|im_start|>user\nHi"
    assert tokenizer.decode(made.chosen) == f"Yes{end}"


@pytest.mark.parametrize("begins", ["", "<s>", "<s><s>", "\n<s>", "\n\n<s>\n<s>"])
def test_a_prompt_begins_with_exactly_one_bos(begins: str) -> None:
    tokenizer = build_tiny_sentencepiece_tokenizer("first")
    encoder = PairEncoder(tokenizer, "it", DatasetFormat(format_type="raw"))
    prompt = encoder.encode(Pair((Message("user", f"{begins}Hi"),), assistant("Yes"), None)).tokens.prompt
    assert prompt == tokenizer.encode("<s>Hi", add_special_tokens=False)


def test_answers_that_truncation_makes_the_same_are_noticed(tokenizer: Any) -> None:
    encoder = PairEncoder(tokenizer, "it", DatasetFormat(format_type="chatml"), 40, 20)
    pair = Pair((Message("user", "Go on."),), assistant("word " * 60 + "good"), assistant("word " * 60 + "bad"))
    assert encoder.encode(pair).lengths.same_after_truncation
    shorter = Pair(pair.prompt, assistant("good"), assistant("bad"))
    assert not encoder.encode(shorter).lengths.same_after_truncation
