"""Pairs as text and token ids, in the same way for runs, checks, previews and chat."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from merlina.data.conversation import Message, Pair, UnusableRowError, assistant
from merlina.data.findings.row_examiner import Lengths, RowExaminer, row_examiner
from merlina.data.rendering.chat_formats import formatter
from merlina.data.rendering.rendered import Rendered
from merlina.schemas.datasets.config import DatasetFormat
from merlina.schemas.training.config import TrainingConfig
from merlina.training.models.tokens import PairTokenizer, TokenPair, Truncation, end_token
from merlina.worker.templates import TokenizerTemplate

# Tokens: more than any text has.
UNLIMITED = 2**40


@dataclass(frozen=True)
class EncodedPair:
    """The whole pair as `text`, the `tokens` that are trained on, and the numbers of truncated tokens, `cut`.

    `lengths` are those of the tokens.
    """

    text: Rendered
    tokens: TokenPair
    cut: Truncation
    lengths: Lengths

    def id_outside(self, vocabulary_size: int) -> int | None:
        """Return the first token id that a model with `vocabulary_size` token ids does not have, or None."""
        if self.lengths.highest_id < vocabulary_size:
            return None
        ids = chain(self.tokens.prompt, self.tokens.chosen, self.tokens.rejected)
        return next(token for token in ids if token >= vocabulary_size)


def _lengths(tokens: TokenPair, cut: Truncation) -> Lengths:
    prompt, chosen, rejected = tokens.prompt, tokens.chosen, tokens.rejected
    answers = (len(chosen) + cut.chosen, len(rejected) + cut.rejected)
    return Lengths(
        prompt=len(prompt),
        chosen=len(chosen),
        rejected=len(rejected),
        highest_id=max(max(prompt), max(chosen, default=0), max(rejected, default=0)),
        cut_prompt=cut.prompt,
        cut_answers=cut.chosen + cut.rejected,
        same_after_truncation=bool(cut) and chosen == rejected,
        untruncated=len(prompt) + cut.prompt + max(answers),
    )


class PairEncoder:
    """Formats pairs by a chat format and encodes them, truncated to the given lengths in tokens.

    `tokenizer_name` names the tokenizer in errors. Raises ModelError if the format needs a chat template that the
    tokenizer does not have.
    """

    def __init__(
        self,
        tokenizer: Any,
        tokenizer_name: str,
        spec: DatasetFormat,
        max_length: int = UNLIMITED,
        max_prompt_length: int = UNLIMITED - 1,
        *,
        drop_overlong: bool = False,
    ) -> None:
        own = TokenizerTemplate(tokenizer, tokenizer_name) if spec.format_type == "tokenizer" else None
        self._format_type = spec.format_type
        self._renders_template = own is not None
        self._max_length = max_length
        self._drops_overlong = drop_overlong
        self._special_tokens = own.special_tokens if own else ()
        self._tokenizer = tokenizer
        self._render = formatter(spec, own)
        self._end_token = end_token(tokenizer, self._suffix())
        self._tokens = PairTokenizer(
            tokenizer, max_length, max_prompt_length, self._end_token, keeps_own_end=spec.format_type == "raw"
        )

    @staticmethod
    def for_run(tokenizer: Any, config: TrainingConfig) -> PairEncoder:
        """Return the encoder that a run with this configuration trains with."""
        dataset, lengths = config.dataset, (config.max_length, config.max_prompt_length)
        return PairEncoder(tokenizer, config.base_model, dataset.format, *lengths, drop_overlong=dataset.drop_overlong)

    @property
    def end_token(self) -> int | None:
        """The token that ends every answer in this format; None if the tokenizer has none."""
        return self._end_token

    def encode(self, pair: Pair) -> EncodedPair:
        """Encode a pair. Raises UnusableRowError if the format cannot represent it or its prompt has no tokens."""
        encoded = next(self.encode_all([pair]))
        if isinstance(encoded, UnusableRowError):
            raise encoded
        return encoded

    def encode_all(self, pairs: Sequence[Pair]) -> Iterator[EncodedPair | UnusableRowError]:
        """Encode many pairs at once, each to what `encode` returns or raises.

        Encoding begins with the call, in the background; iterating waits for its results.
        """
        if self._renders_template:
            # The limits on a template's time and memory apply to the process, so no texts may be encoded meanwhile.
            self._tokens.wait()
        rendered = [self._render_or_error(pair) for pair in pairs]
        texts = [text for text in rendered if isinstance(text, Rendered)]
        return self._all_encoded(
            pairs, rendered, self._tokens.encode_all([(text.prompt, text.chosen, text.rejected) for text in texts])
        )

    def _all_encoded(
        self,
        pairs: Sequence[Pair],
        rendered: Sequence[Rendered | UnusableRowError],
        ids: Iterator[tuple[TokenPair, Truncation]],
    ) -> Iterator[EncodedPair | UnusableRowError]:
        for pair, text in zip(pairs, rendered, strict=True):
            yield self._encoded(pair, text, *next(ids)) if isinstance(text, Rendered) else text

    def _render_or_error(self, pair: Pair) -> Rendered | UnusableRowError:
        try:
            return self._render(pair)
        except UnusableRowError as error:
            return error

    def row_examiner(self) -> RowExaminer:
        """Return a new examiner of rows for this format and tokenizer."""
        return row_examiner(self._format_type, self._special_tokens)

    def _encoded(
        self, pair: Pair, text: Rendered, tokens: TokenPair, cut: Truncation
    ) -> EncodedPair | UnusableRowError:
        if not tokens.prompt:
            return UnusableRowError("its prompt has no tokens in this format")
        if (text.chosen is not None and not tokens.chosen) or (text.rejected is not None and not tokens.rejected):
            return UnusableRowError("an answer has no tokens in this format", "empty_side")
        if cut and self._drops_overlong:
            return UnusableRowError(f"it is longer than {self._max_length:,} tokens", "dropped_overlong")
        kept = TokenPair(tokens.prompt, tokens.chosen, tokens.rejected, pair.number)
        return EncodedPair(text, kept, cut, _lengths(kept, cut))

    def token_text(self, token_id: int) -> str:
        """Return a token in the tokenizer's notation."""
        return str(self._tokenizer.convert_ids_to_tokens(token_id))

    def _suffix(self) -> str:
        """Return the text that the format puts after every answer."""
        try:
            text = self._render(Pair((Message("user", "Hi"),), assistant("Yes"), assistant("No")))
        except UnusableRowError:
            return ""
        after_chosen = (text.chosen or "").rpartition("Yes")[2]
        after_rejected = (text.rejected or "").rpartition("No")[2]
        return after_chosen if after_chosen == after_rejected else ""
