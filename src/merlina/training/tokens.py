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
    """Token ids of the prompt and of the two answers that follow it."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]


@dataclass(frozen=True)
class Cut:
    """How many tokens were left out of each part."""

    prompt: int = 0
    chosen: int = 0
    rejected: int = 0

    def __bool__(self) -> bool:
        return bool(self.prompt or self.chosen or self.rejected)


def encode_pair(
    tokenizer: Any, prompt: str, chosen: str, rejected: str, *, max_length: int, max_prompt_length: int
) -> tuple[TokenPair, Cut]:
    """`tokenizer` is one of transformers'. The lengths are in tokens; `max_length` is that of prompt and answer."""
    whole = TokenPair(
        encode_prompt(tokenizer, prompt), _encode_answer(tokenizer, chosen), _encode_answer(tokenizer, rejected)
    )
    kept = _fit(whole, tokenizer.bos_token_id, max_length, max_prompt_length)
    cut = Cut(
        len(whole.prompt) - len(kept.prompt),
        len(whole.chosen) - len(kept.chosen),
        len(whole.rejected) - len(kept.rejected),
    )
    return kept, cut


def encode_prompt(tokenizer: Any, prompt: str) -> list[int]:
    """A prompt's ids, with one BOS where the tokenizer puts one before a text of its own."""
    ids = list(tokenizer.encode(prompt, add_special_tokens=False))
    bos = tokenizer.bos_token_id
    if bos is None or not _adds_bos(tokenizer):
        return ids
    while len(ids) > 1 and ids[0] == ids[1] == bos:
        ids = ids[1:]
    return ids if ids[:1] == [bos] else [bos, *ids]


def _adds_bos(tokenizer: Any) -> bool:
    return bool(tokenizer.encode("a", add_special_tokens=True)[:1] == [tokenizer.bos_token_id])


def _encode_answer(tokenizer: Any, answer: str) -> list[int]:
    ids = list(tokenizer.encode(answer, add_special_tokens=False))
    ended = bool(ids) and (ids[-1] == tokenizer.eos_token_id or ids[-1] in tokenizer.all_special_ids)
    return ids if ended or tokenizer.eos_token_id is None else [*ids, tokenizer.eos_token_id]


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
