from __future__ import annotations

from pathlib import Path

import pytest

from merlina.training.models.tokens import PairTokenizer
from merlina.worker.helper.token_texts import _decoded, token_texts
from tests.tiny import build_tiny_sentencepiece_tokenizer, build_tiny_tokenizer

pytestmark = pytest.mark.slow

TEXT = "<|im_start|>user\n0加法 😀 naïve café\n<|im_end|>"


def test_all_tokens_together_are_the_text_and_none_shows_half_a_character(tmp_path: Path) -> None:
    tokenizer = build_tiny_tokenizer(tmp_path)
    ids = tokenizer.encode(TEXT, add_special_tokens=False)
    for texts in (token_texts(tokenizer, ids, TEXT), _decoded(tokenizer, ids)):
        assert len(texts) == len(ids)
        assert "".join(texts) == TEXT
        assert texts[0] == "<|im_start|>"
        assert not any("\N{REPLACEMENT CHARACTER}" in text for text in texts)
    assert token_texts(tokenizer, ids, TEXT)[5:8] == ["加", "", ""]


@pytest.mark.parametrize("begins", ["prepend", "first"])
def test_answers_are_shown_as_after_their_prompt(begins: str) -> None:
    tokenizer = build_tiny_sentencepiece_tokenizer(begins)
    prompt, answer = "Why 加 is it", "Because 加 so 😀"
    made, _ = PairTokenizer(tokenizer, 200, 100, tokenizer.eos_token_id).encode(prompt, answer, "no")
    assert "".join(token_texts(tokenizer, made.prompt, prompt)) == f"<s>{prompt}"
    assert "".join(token_texts(tokenizer, made.chosen, answer, prompt)) == f"{answer}</s>"


def test_what_was_cut_is_not_shown(tmp_path: Path) -> None:
    tokenizer = build_tiny_tokenizer(tmp_path)
    ids = tokenizer.encode(TEXT, add_special_tokens=False)
    whole = token_texts(tokenizer, ids, TEXT)
    assert token_texts(tokenizer, ids[-12:], TEXT) == whole[-12:]
    assert token_texts(tokenizer, [*ids[:11], ids[-1]], TEXT) == [*whole[:11], "<|im_end|>"]
