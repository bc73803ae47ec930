from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from merlina.training.models.tokens import PairTokenizer, Truncation
from tests.tiny import build_tiny_sentencepiece_tokenizer, build_tiny_tokenizer

pytestmark = pytest.mark.slow

PROMPT = "<|im_start|>user\nWhy is the sky blue?<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return build_tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def tokenizer_with_bos(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from tokenizers.processors import TemplateProcessing

    tokenizer = build_tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    return tokenizer


def encode(
    tokenizer: Any, prompt: str, chosen: str, rejected: str, longest: int = 512, longest_prompt: int = 256
) -> Any:
    return PairTokenizer(tokenizer, longest, longest_prompt, tokenizer.eos_token_id).encode(prompt, chosen, rejected)


def test_markers_are_special_tokens_and_answers_end_once(tokenizer: Any) -> None:
    pair, cut = encode(tokenizer, PROMPT, "Because.<|im_end|>", "No idea.")
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert pair.prompt[0] == tokenizer.convert_tokens_to_ids("<|im_start|>")
    assert pair.chosen.count(end) == pair.rejected.count(end) == 1
    assert pair.chosen[-1] == pair.rejected[-1] == end
    assert not cut
    assert tokenizer.decode(pair.prompt) == PROMPT


def test_there_is_exactly_one_bos_if_the_tokenizer_uses_one(tokenizer: Any, tokenizer_with_bos: Any) -> None:
    bos = tokenizer_with_bos.bos_token_id
    for text in (PROMPT, f"<s>{PROMPT}", f"<s><s>{PROMPT}"):
        pair, _ = encode(tokenizer_with_bos, text, "a", "b")
        assert pair.prompt.count(bos) == 1
        assert pair.prompt[0] == bos
    pair, _ = encode(tokenizer, PROMPT, "a", "b")
    assert tokenizer.bos_token_id is None
    assert pair.prompt[0] != bos


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    words=st.tuples(*[st.integers(1, 80)] * 3),
    longest=st.integers(16, 200),
    share=st.floats(0.1, 0.9),
)
def test_a_pair_that_is_too_long_keeps_its_prompts_end_and_its_answers_beginning(
    tokenizer_with_bos: Any, words: tuple[int, int, int], longest: int, share: float
) -> None:
    texts = [" ".join(f"w{number}" for number in range(count)) for count in words]
    longest_prompt = max(8, int(longest * share))
    whole, _ = encode(tokenizer_with_bos, *texts, 10**6, 10**5)
    pair, cut = encode(tokenizer_with_bos, *texts, longest, longest_prompt)
    assert cut == Truncation(
        *(len(getattr(whole, part)) - len(getattr(pair, part)) for part in ("prompt", "chosen", "rejected"))
    )
    for answer, whole_answer in ((pair.chosen, whole.chosen), (pair.rejected, whole.rejected)):
        assert len(pair.prompt) + len(answer) <= longest
        assert answer[-1] == whole_answer[-1]
        assert len(answer) >= 2
        assert answer[:-1] == whole_answer[: len(answer) - 1]
    assert pair.prompt[0] == tokenizer_with_bos.bos_token_id
    assert pair.prompt[1:] == whole.prompt[len(whole.prompt) - len(pair.prompt) + 1 :]
    if len(whole.prompt) + max(len(whole.chosen), len(whole.rejected)) <= longest:
        assert pair == whole
    else:
        assert len(pair.prompt) <= longest_prompt


@pytest.mark.parametrize("answer", ["Paris", "\nParis", "is"])
def test_an_answer_that_shares_a_token_with_its_prompt_has_ids_that_the_model_can_generate(answer: str) -> None:
    """The prompt's last token is the space that one text of both would give to the answer."""
    tokenizer = build_tiny_sentencepiece_tokenizer("prepend")
    pair, _ = encode(tokenizer, "Q: Why A: ", answer, answer)
    assert tokenizer.convert_ids_to_tokens(pair.prompt)[-1] == "▁"
    assert "▁" not in "".join(tokenizer.convert_ids_to_tokens(pair.chosen))
    assert tokenizer.decode(pair.prompt + pair.chosen) == f"<s> Q: Why A: {answer}</s>"
