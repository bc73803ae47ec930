"""The one way from a pair to what is trained on: its text and its token ids. Runs, checks and previews all take it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from merlina.data.doctor import Lengths
from merlina.data.formats import Rendered, formatter
from merlina.data.pairs import Message, Pair, UnusableRowError
from merlina.schemas.datasets import DatasetFormat
from merlina.training.models.tokens import PairTokenizer, TokenPair, Truncation, end_token
from merlina.worker.templates import TokenizerTemplate


@dataclass(frozen=True)
class EncodedPair:
    """`text` is the whole pair; `tokens` is what of it is trained on, `cut` what was left out."""

    text: Rendered
    tokens: TokenPair
    cut: Truncation

    @property
    def lengths(self) -> Lengths:
        prompt, chosen, rejected = len(self.tokens.prompt), len(self.tokens.chosen), len(self.tokens.rejected)
        return Lengths(
            prompt=prompt,
            chosen=chosen,
            rejected=rejected,
            highest_id=max(map(max, filter(None, (self.tokens.prompt, self.tokens.chosen, self.tokens.rejected)))),
            cut_prompt=self.cut.prompt,
            cut_answers=self.cut.chosen + self.cut.rejected,
        )

    def id_outside(self, vocabulary: int) -> int | None:
        """Return the first token id that a model with this many token ids doesn't have, None without any."""
        ids = chain(self.tokens.prompt, self.tokens.chosen, self.tokens.rejected)
        return next((token for token in ids if token >= vocabulary), None)


class PairEncoder:
    """`tokenizer_name` is whose tokenizer it is, for errors. Raises ModelError where the format needs a template
    that the tokenizer doesn't have."""

    def __init__(
        self, tokenizer: Any, tokenizer_name: str, spec: DatasetFormat, max_length: int, max_prompt_length: int
    ) -> None:
        own = TokenizerTemplate(tokenizer, tokenizer_name) if spec.format_type == "tokenizer" else None
        self._tokenizer = tokenizer
        self._render = formatter(spec, own)
        self._end = end_token(tokenizer, self._suffix())
        self._tokens = PairTokenizer(tokenizer, max_length, max_prompt_length, self._end)

    def encode(self, pair: Pair) -> EncodedPair:
        """Raises UnusableRowError where the format can't hold it, or nothing would stand before the answer."""
        text = self._render(pair)
        tokens, cut = self._tokens.encode(text.prompt, text.chosen, text.rejected)
        if not tokens.prompt:
            raise UnusableRowError("its prompt has no tokens at all in this format")
        return EncodedPair(text, replace(tokens, row=pair.number), cut)

    def token(self, token_id: int) -> str:
        """Return a token as the tokenizer writes it."""
        return str(self._tokenizer.convert_ids_to_tokens(token_id))

    def end_token(self) -> int | None:
        """The token that ends every answer in this format, or None where the tokenizer has none."""
        return self._end

    def _suffix(self) -> str:
        """The text that the format puts after every answer."""
        try:
            text = self._render(Pair((Message("user", "Hi"),), "Yes", "No"))
        except UnusableRowError:
            return ""
        after_chosen, after_rejected = text.chosen.rpartition("Yes")[2], (text.rejected or "").rpartition("No")[2]
        return after_chosen if after_chosen == after_rejected else ""
