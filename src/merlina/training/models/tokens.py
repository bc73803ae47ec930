"""Formatted texts to token ids, with the room they may take.

1. Texts are encoded without the tokenizer's own additions: a format's markers are in them. An answer's ids are those it
   has behind its prompt, which are the same alone but for tokenizers that mark where a text begins.
2. The prompt begins with exactly one BOS where the tokenizer uses one.
3. An answer ends with exactly one end token, which its format decides: see `end_token`. An end token that the data
   itself has at the end of an answer is not repeated, and white space behind the end token is left out.
4. A pair that is too long loses the prompt's beginning first, then each answer's end before its end token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

_SHORTEST_ANSWER = 2
# What an answer is put behind where it would melt into its prompt: a token of its own before most texts.
_STAND_INS = ("\n", ".")


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
class Truncation:
    """How many tokens were left out of each part."""

    prompt: int = 0
    chosen: int = 0
    rejected: int = 0

    def __bool__(self) -> bool:
        return bool(self.prompt or self.chosen or self.rejected)


class PairTokenizer:
    """`tokenizer` is one of transformers'. Lengths are in tokens; `max_length` is that of a prompt with its answer.

    `end` is the token that ends every answer; None where the tokenizer has none.
    """

    def __init__(self, tokenizer: Any, max_length: int, max_prompt_length: int, end: int | None) -> None:
        self._tokenizer = tokenizer
        self._max_length = max_length
        self._max_prompt_length = max_prompt_length
        self._bos = automatic_bos(tokenizer)
        self._same_anywhere = _encodes_alike_anywhere(tokenizer)
        self._end = end
        self._ends = frozenset({end, tokenizer.eos_token_id} - {None})
        self._is_blank: dict[int, bool] = {}

    def encode(self, prompt: str, chosen: str, rejected: str | None) -> tuple[TokenPair, Truncation]:
        """The ids that are trained on, and how many tokens were left out to make them fit."""
        begun = _Beginning(self._tokenizer, _with_one_bos(prompt, self._bos))
        of_rejected = [] if rejected is None else self._answer(begun, rejected)
        whole = TokenPair(begun.ids, self._answer(begun, chosen), of_rejected)
        kept = _fit(whole, self._tokenizer.bos_token_id, self._max_length, self._max_prompt_length)
        cut = Truncation(
            len(whole.prompt) - len(kept.prompt),
            len(whole.chosen) - len(kept.chosen),
            len(whole.rejected) - len(kept.rejected),
        )
        return kept, cut

    def _answer(self, begun: _Beginning, answer: str) -> list[int]:
        ids = _ids(self._tokenizer, answer) if self._same_anywhere else begun.followed_by(answer)
        return ids if self._end is None else [*self._without_end(ids), self._end]

    def _without_end(self, ids: list[int]) -> list[int]:
        """The ids up to the first of the end tokens that nothing but white space and other end tokens follows."""
        begins = len(ids)
        for place in reversed(range(len(ids))):
            if ids[place] in self._ends:
                begins = place
            elif not self._blank(ids[place]):
                break
        return ids[:begins]

    def _blank(self, token: int) -> bool:
        if token not in self._is_blank:
            self._is_blank[token] = not self._tokenizer.decode([token]).strip()
        return self._is_blank[token]


class _Beginning:
    """A text that others follow, with its ids when nothing does: what a model is given before it answers."""

    def __init__(self, tokenizer: Any, text: str) -> None:
        self._tokenizer = tokenizer
        self._text = text
        self.ids = _ids(tokenizer, text)

    def followed_by(self, answer: str) -> list[int]:
        """The answer's ids in one text with this one; where tokens reach over the border, those it has in any text."""
        ids = self._added_by(answer)
        if ids is None:
            others = (_Beginning(self._tokenizer, text)._added_by(answer) for text in _STAND_INS)
            ids = next((ids for ids in others if ids is not None), None)
        return _ids(self._tokenizer, answer) if ids is None else ids

    def _added_by(self, answer: str) -> list[int] | None:
        whole = _ids(self._tokenizer, self._text + answer)
        return whole[len(self.ids) :] if whole[: len(self.ids)] == self.ids else None


def end_token(tokenizer: Any, suffix: str) -> int | None:
    """The token that ends answers in a format that puts `suffix` after each of them; None where there is none.

    It is the suffix's last token, if that is the EOS or was added to the vocabulary as a whole, special or not: text
    never becomes such a token by accident. Anything else, such as a line break, also occurs inside answers, so that
    generation could not end there: the EOS follows it.
    """
    ids = _ids(tokenizer, suffix.rstrip()) if suffix.strip() else []
    eos: int | None = tokenizer.eos_token_id
    is_marker = bool(ids) and ids[-1] in tokenizer.added_tokens_decoder and ids[-1] != tokenizer.unk_token_id
    return ids[-1] if is_marker else eos


def automatic_bos(tokenizer: Any) -> str | None:
    """The BOS, where the tokenizer puts one before a text of its own."""
    bos: str | None = tokenizer.bos_token
    return bos if bos is not None and tokenizer.encode("a")[:1] == [tokenizer.bos_token_id] else None


def _with_one_bos(text: str, bos: str | None) -> str:
    """The text beginning with exactly one `bos`; as it is where that is None.

    Encoded with the text, as a chat template's BOS is: a tokenizer may take what follows for no beginning any more.
    """
    if bos is None:
        return text
    while text.startswith(bos + bos):
        text = text.removeprefix(bos)
    return text if text.startswith(bos) else bos + text


def _encodes_alike_anywhere(tokenizer: Any) -> bool:
    """Whether a text has the same ids alone as behind another. SentencePiece's kind begins each with a space."""
    alone = _ids(tokenizer, "a")
    return _ids(tokenizer, "\na")[-len(alone) :] == alone


def _ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False))


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
