"""Streaming of an answer during generation: text, log-probabilities of tokens, and the reasons to stop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, StoppingCriteria

from merlina.schemas.chat import AnswerBegins, AnswerText
from merlina.schemas.operations import AnswerToken, TokenChoice
from merlina.worker.chat.detokenizer import Detokenizer
from merlina.worker.chat.stop_texts import StopTexts

AnswerEvent = AnswerBegins | AnswerToken | AnswerText


class TokenLogprobs(LogitsProcessor):  # type: ignore[misc]
    """Log-probabilities at the position of the next token, of the model itself: before temperature and top_p."""

    def __init__(self, tokenizer: Any, top: int) -> None:
        self._tokenizer = tokenizer
        self._top = top
        self._logprobs = torch.empty(0)  # [V], V: vocabulary

    def __call__(self, _input_ids: Tensor, scores: Tensor) -> Tensor:
        """Store the log-probabilities of `scores`, logits of shape [1, V], and return them unchanged."""
        self._logprobs = scores[0].float().log_softmax(-1)
        return scores

    def describe(self, token: int) -> AnswerToken:
        """Return the log-probability of the token that was chosen, and the highest ones."""
        highest = self._logprobs.topk(min(self._top, len(self._logprobs)))
        top = [
            self._choice(each, value)
            for each, value in zip(highest.indices.tolist(), highest.values.tolist(), strict=True)
        ]
        chosen = self._choice(token, float(self._logprobs[token]))
        return AnswerToken(type="token", text=chosen.text, logprob=chosen.logprob, top=top)

    def _choice(self, token: int, logprob: float) -> TokenChoice:
        text = self._tokenizer.decode([token], clean_up_tokenization_spaces=False)
        return TokenChoice(text=str(text), logprob=logprob)


@dataclass(eq=False)
class AnswerStream(StoppingCriteria):  # type: ignore[misc]
    """Sends each token's text when it has been generated, and stops the generation at a stop text or if cancelled."""

    send: Callable[[AnswerEvent], None]
    is_cancelled: Callable[[], bool]
    detokenizer: Detokenizer
    stop: StopTexts
    end_tokens: frozenset[int]
    logprobs: TokenLogprobs | None = None
    ids: list[int] = field(default_factory=list)

    def __call__(self, input_ids: Tensor, _scores: Any, **_: Any) -> Tensor:
        """Return whether to stop, shape [1], after the last of `input_ids`, shape [1, tokens so far]."""
        token = int(input_ids[0, -1])
        self.ids.append(token)
        if self.logprobs is not None and token not in self.end_tokens:
            self.send(self.logprobs.describe(token))
        self._send_text(self.stop.add(self.detokenizer.add(token)))
        return torch.tensor([self.stop.is_found or self.is_cancelled()], device=input_ids.device)

    def flush(self) -> None:
        """Send the text that was held back until the end of the answer."""
        text = "" if self.stop.is_found else self.stop.add(self.detokenizer.flush())
        self._send_text(text if self.stop.is_found else text + self.stop.flush())

    def _send_text(self, text: str) -> None:
        self.send(AnswerText(type="text", text=text))
