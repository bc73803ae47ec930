"""Formatted texts to token ids, with the room they may take.

1. Prompt and answers are encoded apart, without the tokenizer's own additions: a format's markers are in the text.
2. The prompt begins with exactly one BOS where the tokenizer uses one.
3. An answer ends with an end token: the EOS, or whichever special token its format ends with.
4. A pair that is too long loses the prompt's beginning first, then each answer's end before its end token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

_SHORTEST_ANSWER = 2


@dataclass(frozen=True)
class TokenPair:
    """Token ids of the prompt and of the two answers that follow it; `row` is its number in the data set.

    `rejected` is empty where the method has no use for it.
    """

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]
    row: int = 0


@dataclass(frozen=True)
class Cut:
    """How many tokens were left out of each part."""

    prompt: int = 0
    chosen: int = 0
    rejected: int = 0

    def __bool__(self) -> bool:
        return bool(self.prompt or self.chosen or self.rejected)


class PairTokenizer:
    """`tokenizer` is one of transformers'. Lengths are in tokens; `max_length` is that of a prompt with its answer."""

    def __init__(self, tokenizer: Any, max_length: int, max_prompt_length: int) -> None:
        self._tokenizer = tokenizer
        self._max_length = max_length
        self._max_prompt_length = max_prompt_length
        self._bos = _bos_it_adds(tokenizer)
        self._end: int | None = tokenizer.eos_token_id
        # Some end markers, as Llama 3's, are special without being among those the tokenizer has a name for.
        added = (token for token, facts in tokenizer.added_tokens_decoder.items() if facts.special)
        self._special = frozenset([*tokenizer.all_special_ids, *added])

    def encode(self, prompt: str, chosen: str, rejected: str | None) -> tuple[TokenPair, Cut]:
        """The ids that are trained on, and how many tokens were left out to make them fit."""
        of_rejected = [] if rejected is None else self._answer(rejected)
        whole = TokenPair(self._prompt(prompt), self._answer(chosen), of_rejected)
        kept = _fit(whole, self._tokenizer.bos_token_id, self._max_length, self._max_prompt_length)
        cut = Cut(
            len(whole.prompt) - len(kept.prompt),
            len(whole.chosen) - len(kept.chosen),
            len(whole.rejected) - len(kept.rejected),
        )
        return kept, cut

    def _prompt(self, prompt: str) -> list[int]:
        return _with_one_bos(list(self._tokenizer.encode(prompt, add_special_tokens=False)), self._bos)

    def _answer(self, answer: str) -> list[int]:
        ids = list(self._tokenizer.encode(answer, add_special_tokens=False))
        ended = bool(ids) and (ids[-1] == self._end or ids[-1] in self._special)
        return ids if ended or self._end is None else [*ids, self._end]


def encode_prompt(tokenizer: Any, prompt: str) -> list[int]:
    """A prompt's ids alone, as they stand before an answer in training."""
    return _with_one_bos(list(tokenizer.encode(prompt, add_special_tokens=False)), _bos_it_adds(tokenizer))


def _with_one_bos(ids: list[int], bos: int | None) -> list[int]:
    """The ids beginning with exactly one `bos`; as they are where it is None."""
    if bos is None:
        return ids
    while len(ids) > 1 and ids[0] == ids[1] == bos:
        ids = ids[1:]
    return ids if ids[:1] == [bos] else [bos, *ids]


def _bos_it_adds(tokenizer: Any) -> int | None:
    """The BOS, where the tokenizer puts one before a text of its own."""
    bos: int | None = tokenizer.bos_token_id
    return bos if bos is not None and tokenizer.encode("a", add_special_tokens=True)[:1] == [bos] else None


def _fit(pair: TokenPair, bos: int | None, max_length: int, max_prompt_length: int) -> TokenPair:
    longest_answer = max(len(pair.chosen), len(pair.rejected))
    if len(pair.prompt) + longest_answer <= max_length:
        return pair
    prompt = _last(pair.prompt, min(max_prompt_length, max_length - _SHORTEST_ANSWER), bos)
    room = max_length - len(prompt)
    return TokenPair(prompt, _first(pair.chosen, room), _first(pair.rejected, room))


def _last(prompt: list[int], room: int, bos: int | None) -> list[int]:
    """The prompt's last tokens; a BOS stays first."""
    if len(prompt) <= room:
        return prompt
    if bos is not None and prompt[0] == bos:
        return [bos, *prompt[len(prompt) - room + 1 :]]
    return prompt[len(prompt) - room :]


def _first(answer: list[int], room: int) -> list[int]:
    """The answer's first tokens; its end token stays last."""
    return answer if len(answer) <= room else [*answer[: room - 1], answer[-1]]
