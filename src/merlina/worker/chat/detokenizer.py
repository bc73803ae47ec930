"""Conversion of tokens to text during generation: text is returned once no later token can change it."""

from __future__ import annotations

from typing import Any

_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"


class Detokenizer:
    """Returns the text of an answer token by token, without special tokens and leading whitespace.

    A token's text may depend on the one before it, and a character may span several tokens. Each token is therefore
    decoded together with the tokens of the last piece, and only the text that this adds is returned. For example, if
    the bytes of "é" are the tokens 7 and 8, `add(7)` returns "" and `add(8)` returns "é".
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._piece_start = 0  # index of the first token of the last piece returned
        self._piece_end = 0
        self._has_text = False

    def add(self, token: int) -> str:
        """Add a token and return the text that is now final; empty while a character is incomplete."""
        self._ids.append(token)
        return self._next(flush=False)

    def flush(self) -> str:
        """Return the remaining text at the end, including an incomplete character."""
        return self._next(flush=True)

    def _next(self, *, flush: bool) -> str:
        returned = self._decode(self._ids[self._piece_start : self._piece_end])
        text = self._decode(self._ids[self._piece_start :])
        if len(text) <= len(returned) or (text.endswith(_INCOMPLETE) and not flush):
            return ""
        self._piece_start, self._piece_end = self._piece_end, len(self._ids)
        piece = text[len(returned) :]
        if not self._has_text:
            piece = piece.lstrip()
            self._has_text = bool(piece)
        return piece

    def _decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))
