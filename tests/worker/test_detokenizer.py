from __future__ import annotations

from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from merlina.worker.chat.detokenizer import Detokenizer
from tests.tiny import build_tiny_tokenizer

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def by_bytes(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return build_tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def by_words() -> Any:
    """A tokenizer that marks the beginnings of words, as SentencePiece does: the first token loses its space."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({"▁the": 0, "▁sky": 1, "▁is": 2, "</s>": 3, "<unk>": 4}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", unk_token="<unk>")


def pieces(tokenizer: Any, ids: list[int]) -> list[str]:
    detokenizer = Detokenizer(tokenizer)
    return [*(detokenizer.add(token) for token in ids), detokenizer.flush()]


@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\ufffd")))
def test_no_character_is_split(by_bytes: Any, text: str) -> None:
    assume(not any(token in text for token in by_bytes.all_special_tokens))  # they are no text
    found = pieces(by_bytes, by_bytes.encode(f"{text}<|im_end|>", add_special_tokens=False))
    assert "".join(found) == text.lstrip()
    assert not any("\ufffd" in piece for piece in found)


def test_text_is_returned_as_it_is_generated_without_special_tokens(by_bytes: Any) -> None:
    ids = by_bytes.encode("<|im_start|>The sky 🔮 is<|im_end|>", add_special_tokens=False)
    found = [piece for piece in pieces(by_bytes, ids) if piece]
    assert "".join(found) == "The sky 🔮 is"
    assert len(found) > 4
    assert any("🔮" in piece for piece in found)


def test_an_answer_that_ends_within_a_character_has_a_replacement_character(by_bytes: Any) -> None:
    ids = by_bytes.encode("is 🔮", add_special_tokens=False)
    assert "".join(pieces(by_bytes, ids[:-1])) == "is \ufffd"


def test_spaces_between_words_stay(by_words: Any) -> None:
    assert pieces(by_words, [0, 1, 2, 1, 3]) == ["the", " sky", " is", " sky", "", ""]
