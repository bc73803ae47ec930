"""Tokenization: from formatted texts to token ids that fit into the configured lengths.

1. Texts are encoded without special tokens of the tokenizer, since a format's markers are part of the text. An answer
   has the ids that it has after its prompt. For most tokenizers these are the same alone; SentencePiece models, which
   mark the beginning of a text, differ.
2. The prompt begins with exactly one BOS if the tokenizer uses one.
3. An answer ends with exactly one end token, which its format determines (`end_token`). End tokens at the end of the
   data's answer are not repeated, and whitespace after them is removed.
4. If the prompt and the longer answer exceed max_length, the prompt keeps its BOS and last tokens, and then each answer
   its first tokens and its end token. Example with max_length 10 and max_prompt_length 6:

       prompt [BOS, p1 .. p8], answers of 3 and 7 tokens    9 + 7 = 16 is too long
       prompt [BOS, p4 .. p8] has 6 tokens, so 4 remain for answers
       the answer of 3 tokens is unchanged, of the other [a1, a2, a3, end] remain
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

# The tokens that remain for each answer if the prompt takes all the rest: its first one and its end token.
_SHORTEST_ANSWER = 2
# Texts that replace a prompt if its end shares a token with the answer: most texts begin a new token after them.
_SUBSTITUTES = ("\n", ".")


@dataclass(frozen=True)
class TokenPair:
    """The token ids of a prompt and its two answers; `row` is its number in the data set.

    An answer that the pair does not have is empty: `rejected` for sft, either of them for unpaired answers.
    """

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]
    row: int = 0

    @property
    def label(self) -> bool | None:
        """The label of a single answer, true if it is the chosen one; None for a pair of two."""
        return None if self.chosen and self.rejected else bool(self.chosen)


@dataclass(frozen=True)
class Truncation:
    """The number of tokens by which each section was truncated."""

    prompt: int = 0
    chosen: int = 0
    rejected: int = 0

    def __bool__(self) -> bool:
        return bool(self.prompt or self.chosen or self.rejected)


_NOT_TRUNCATED = Truncation()
# The token ids of prompts, and of all of their answers.
_Encoded = tuple[list[list[int]], list[list[int]]]


class PairTokenizer:
    """Encodes pairs with a tokenizer of transformers. Lengths are in tokens; `max_length` covers prompt and answer.

    `end` is the token that ends every answer; None if the tokenizer has none. With `keeps_own_end`, an answer that ends
    with a special token keeps this one.
    """

    def __init__(
        self,
        tokenizer: Any,
        max_length: int,
        max_prompt_length: int,
        end: int | None,
        *,
        keeps_own_end: bool = False,
    ) -> None:
        self._tokenizer = tokenizer
        self._max_length = max_length
        self._max_prompt_length = max_prompt_length
        self._bos = automatic_bos(tokenizer)
        self._bos_id: int | None = tokenizer.bos_token_id
        self._is_context_free = _is_context_free(tokenizer)
        self._end = end
        self._ends = frozenset({end, tokenizer.eos_token_id} - {None})
        # Any other special token may be the end of an answer that the data already formats.
        self._own_ends = _special_ids(tokenizer) - self._ends if keeps_own_end else frozenset()
        self._is_blank: dict[int, bool] = {}
        self._background = ThreadPoolExecutor(1, "tokenizer")
        self._begun: Future[_Encoded] | None = None

    def encode(self, prompt: str, chosen: str | None, rejected: str | None) -> tuple[TokenPair, Truncation]:
        """Return the token ids to train on, and the number of tokens that were truncated to fit the lengths."""
        return next(self.encode_all([(prompt, chosen, rejected)]))

    def encode_all(self, texts: Sequence[tuple[str, str | None, str | None]]) -> Iterator[tuple[TokenPair, Truncation]]:
        """Encode many pairs of (prompt, chosen, rejected) at once, which is several times as fast.

        Encoding begins with the call, in a background thread; iterating waits for its results.
        """
        prompts = [_with_one_bos(prompt, self._bos) for prompt, _, _ in texts]
        answers = [(index, answer) for index, (_, *both) in enumerate(texts) for answer in both if answer is not None]
        self._begun = self._background.submit(self._encode_texts, prompts, answers)
        return self._pairs(texts, self._begun)

    def wait(self) -> None:
        """Wait until the texts of the last call of `encode_all` are encoded."""
        if self._begun is not None:
            wait([self._begun])

    def _pairs(
        self, texts: Sequence[tuple[str, str | None, str | None]], begun: Future[_Encoded]
    ) -> Iterator[tuple[TokenPair, Truncation]]:
        starts, answers = begun.result()
        ids = iter(answers)
        for start, (_, *both) in zip(starts, texts, strict=True):
            chosen, rejected = ([] if answer is None else self._ended(next(ids)) for answer in both)
            yield self._fitted(TokenPair(start, chosen, rejected))

    def _encode_texts(self, prompts: list[str], answers: Sequence[tuple[int, str]]) -> _Encoded:
        """Return the ids of each prompt, and those of each answer after the prompt at its index."""
        if self._is_context_free:
            texts = [answer for _, answer in answers]
        else:
            texts = [prompts[index] + answer for index, answer in answers]
        # All at once: after each call, this thread waits for the interpreter, and the tokenizer for this thread.
        ids = _all_ids(self._tokenizer, prompts + texts)
        starts, ends = ids[: len(prompts)], ids[len(prompts) :]
        if self._is_context_free:
            return starts, ends
        return starts, [
            self._continuation(starts[index], whole, answer)
            for (index, answer), whole in zip(answers, ends, strict=True)
        ]

    def _continuation(self, start: list[int], whole: list[int], answer: str) -> list[int]:
        """Return the ids of `whole` after its prompt's own, `start`.

        If a token spans the boundary between both, the prompt's own ids change, and the model could never generate the
        answer from them. Then the ids that the answer has after another text are used.
        """
        if whole[: len(start)] == start:
            return whole[len(start) :]
        for text in _SUBSTITUTES:
            other, both = _ids(self._tokenizer, text), _ids(self._tokenizer, text + answer)
            if both[: len(other)] == other:
                return both[len(other) :]
        return _ids(self._tokenizer, answer)

    def _fitted(self, whole: TokenPair) -> tuple[TokenPair, Truncation]:
        kept = _fit(whole, self._bos_id, self._max_length, self._max_prompt_length)
        if kept is whole:
            return kept, _NOT_TRUNCATED
        cut = Truncation(
            len(whole.prompt) - len(kept.prompt),
            len(whole.chosen) - len(kept.chosen),
            len(whole.rejected) - len(kept.rejected),
        )
        return kept, cut

    def _ended(self, ids: list[int]) -> list[int]:
        if self._own_ends and (own := self._up_to_own_end(ids)):
            return own
        if self._end is None:
            return ids
        if ids and ids[-1] == self._end and (len(ids) == 1 or self._is_content(ids[-2])):
            return ids
        return [*self._without_end(ids), self._end]

    def _is_content(self, token: int) -> bool:
        return token not in self._ends and not self._blank(token)

    def _up_to_own_end(self, ids: list[int]) -> list[int]:
        """Return the ids up to a special token that only whitespace follows; empty without one to keep."""
        ends = next((index for index in reversed(range(len(ids))) if not self._blank(ids[index])), None)
        return ids[: ends + 1] if ends is not None and ids[ends] in self._own_ends else []

    def _without_end(self, ids: list[int]) -> list[int]:
        """Return the ids before the trailing end tokens. Whitespace between and after those is removed with them."""
        begins = len(ids)
        for index in reversed(range(len(ids))):
            if ids[index] in self._ends:
                begins = index
            elif not self._blank(ids[index]):
                break
        return ids[:begins]

    def _blank(self, token: int) -> bool:
        if token not in self._is_blank:
            self._is_blank[token] = not self._tokenizer.decode([token]).strip()
        return self._is_blank[token]


def end_token(tokenizer: Any, suffix: str) -> int | None:
    """Return the token that ends answers of a format that appends `suffix` to each of them; None if there is none.

    This is the suffix's last token if it is the EOS or an added token, special or not: ordinary text never becomes such
    a token. Anything else, such as a line break, also occurs inside answers, where generation must not end; then the
    EOS follows the suffix.
    """
    ids = _ids(tokenizer, suffix.rstrip()) if suffix.strip() else []
    eos: int | None = tokenizer.eos_token_id
    # An unknown token stands for any text and never marks an end.
    is_marker = bool(ids) and ids[-1] in tokenizer.added_tokens_decoder and ids[-1] != tokenizer.unk_token_id
    return ids[-1] if is_marker else eos


def _special_ids(tokenizer: Any) -> frozenset[int]:
    return frozenset(token for token, added in tokenizer.added_tokens_decoder.items() if added.special)


def automatic_bos(tokenizer: Any) -> str | None:
    """Return the BOS if the tokenizer adds one to texts, else None."""
    bos: str | None = tokenizer.bos_token
    return bos if bos is not None and tokenizer.encode("a")[:1] == [tokenizer.bos_token_id] else None


def _with_one_bos(text: str, bos: str | None) -> str:
    """Return the text with exactly one `bos` at its beginning, which nothing precedes; unchanged if `bos` is None.

    The BOS is encoded with the text, as it is in chat templates, since it can change how the next token is encoded.
    """
    if bos is None:
        return text
    found = re.match(rf"(?:\s*{re.escape(bos)})+", text)
    return bos + (text[found.end() :] if found else text)


def _is_context_free(tokenizer: Any) -> bool:
    """Return whether a text has the same ids alone and after another. SentencePiece models add a space at its start."""
    alone = _ids(tokenizer, "a")
    return _ids(tokenizer, "\na")[-len(alone) :] == alone


def _ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False))


def _all_ids(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    if len(texts) < 2:
        return [_ids(tokenizer, text) for text in texts]
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        backend.no_truncation()
        backend.no_padding()
        # Without offsets and without the other fields that transformers adds for each text.
        encodings = backend.encode_batch_fast(texts, add_special_tokens=False)
        if encodings[0].ids == _ids(tokenizer, texts[0]):
            return [encoding.ids for encoding in encodings]
    found = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False)
    return list(found["input_ids"])


def _fit(pair: TokenPair, bos: int | None, max_length: int, max_prompt_length: int) -> TokenPair:
    # Both answers share one prompt, which is truncated for the longer of them.
    longest_answer = max(len(pair.chosen), len(pair.rejected))
    if len(pair.prompt) + longest_answer <= max_length:
        return pair
    prompt = _last(pair.prompt, min(max_prompt_length, max_length - _SHORTEST_ANSWER), bos)
    left = max_length - len(prompt)
    return TokenPair(prompt, _first(pair.chosen, left), _first(pair.rejected, left))


def _last(prompt: list[int], length: int, bos: int | None) -> list[int]:
    """Return the prompt's last tokens. A BOS stays first."""
    if len(prompt) <= length:
        return prompt
    if bos is not None and prompt[0] == bos:
        return [bos, *prompt[len(prompt) - length + 1 :]]
    return prompt[len(prompt) - length :]


def _first(answer: list[int], length: int) -> list[int]:
    """Return the answer's first tokens. Its end token stays last."""
    return answer if len(answer) <= length else [*answer[: length - 1], answer[-1]]
