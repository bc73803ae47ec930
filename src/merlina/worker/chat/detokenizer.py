"""Tokens to text while they are drawn: a piece is told once no later token can change it."""

from __future__ import annotations

from typing import Any

_UNFINISHED = "\N{REPLACEMENT CHARACTER}"


class TextPieces:
    """The text of an answer, token by token, without special tokens and without white space before it.

    A token's text may depend on the one before it, and a character may be spread over several tokens. So a token is
    decoded together with the last piece, and only what this adds is new.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._piece_from = 0  # where the last piece that was told begins
        self._piece_to = 0
        self._begun = False

    def add(self, token: int) -> str:
        """What can be told now; empty where a character is still unfinished."""
        self._ids.append(token)
        return self._next(even_unfinished=False)

    def rest(self) -> str:
        """What is left at the end."""
        return self._next(even_unfinished=True)

    def _next(self, *, even_unfinished: bool) -> str:
        told = self._decode(self._ids[self._piece_from : self._piece_to])
        text = self._decode(self._ids[self._piece_from :])
        if len(text) <= len(told) or (text.endswith(_UNFINISHED) and not even_unfinished):
            return ""
        self._piece_from, self._piece_to = self._piece_to, len(self._ids)
        piece = text[len(told) :]
        if not self._begun:
            piece = piece.lstrip()
            self._begun = bool(piece)
        return piece

    def _decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))
