"""Completions in the form of OpenAI's API: models by name, answers whole or in chunks."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field

from merlina.chat.served_models import ModelNames, NamedModel
from merlina.chat.service import ChatService
from merlina.executors.chat_process import AnswerEvent
from merlina.schemas.chat import AnswerBegins, AnswerEnds, AnswerText
from merlina.schemas.completions import (
    AnswerMessage,
    Choice,
    ChoiceLogprobs,
    ChunkChoice,
    Completion,
    CompletionChunk,
    CompletionRequest,
    Delta,
    FinishReason,
    ServedModel,
    ServedModels,
    TokenLogprob,
    TopLogprob,
    Usage,
)
from merlina.schemas.operations import AnswerToken, TokenChoice

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
# JSON has no infinity; OpenAI's API sends this value for tokens with practically no probability.
_LEAST_LOGPROB = -9999.0


@dataclass(frozen=True)
class Completions:
    """Operations of the routes below `/v1`. `closed` is set once the client has disconnected."""

    chat: ChatService
    names: ModelNames

    def models(self) -> ServedModels:
        """Return all models that can be named."""
        return ServedModels(data=[_served(model) for model in self.names.all()])

    def model(self, name: str) -> ServedModel:
        """Return one model. Raises NotFoundError."""
        return _served(self.names.find(name))

    def complete(self, request: CompletionRequest, closed: threading.Event) -> Completion:
        """Return the whole answer. Raises NotFoundError and as `ChatService.load`."""
        answer = _Answer(request.model)
        for event in self._events(request, closed):
            answer.add(event)
        return answer.completion(with_logprobs=bool(request.logprobs))

    def stream(self, request: CompletionRequest, closed: threading.Event) -> Generator[CompletionChunk, None, None]:
        """Yield the answer in chunks as it is generated. Raises as `complete`."""
        answer = _Answer(request.model)
        events = self._events(request, closed)
        try:
            for event in events:
                yield from answer.add(event)
        finally:
            events.close()
        if request.stream_options is not None and request.stream_options.include_usage:
            yield answer.usage_chunk()

    def _events(self, request: CompletionRequest, closed: threading.Event) -> Generator[AnswerEvent, None, None]:
        model = self.names.find(request.model, loaded_with_base=self.chat.job_with_base)
        return self.chat.answer(
            model.job_id,
            model.side,
            [message.as_chat() for message in request.messages],
            request.sampling(seed=secrets.randbelow(2**32)),
            closed,
            top_logprobs=(request.top_logprobs or 0) if request.logprobs else None,
        )


@dataclass
class _Answer:
    """Collects the events of an answer and converts them to chunks."""

    model: str
    id: str = field(default_factory=lambda: f"chatcmpl-{secrets.token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))
    texts: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    sent_logprobs: int = 0
    prompt_tokens: int = 0
    end: AnswerEnds | None = None

    def add(self, event: AnswerEvent) -> Sequence[CompletionChunk]:
        """Add an event and return the chunks that it completes."""
        if isinstance(event, AnswerBegins):
            self.prompt_tokens = event.prompt_tokens
            return [self._chunk(Delta(role="assistant", content=""))]
        if isinstance(event, AnswerToken):
            self.logprobs.append(_token_logprob(event))
            return ()
        if isinstance(event, AnswerText):
            self.texts.append(event.text)
            return [self._chunk(Delta(content=event.text))]
        self.end = event
        return [self._chunk(Delta(), _finish_reason(event))]

    def completion(self, *, with_logprobs: bool) -> Completion:
        """Return the whole answer; all events must have been added."""
        assert self.end is not None
        choice = Choice(
            message=AnswerMessage(content="".join(self.texts)),
            logprobs=ChoiceLogprobs(content=self.logprobs) if with_logprobs else None,
            finish_reason=_finish_reason(self.end),
        )
        return Completion(id=self.id, created=self.created, model=self.model, choices=[choice], usage=self._usage())

    def usage_chunk(self) -> CompletionChunk:
        """Return the last chunk of a stream with usage."""
        return CompletionChunk(id=self.id, created=self.created, model=self.model, choices=[], usage=self._usage())

    def _usage(self) -> Usage:
        assert self.end is not None
        tokens = self.end.tokens
        return Usage(
            prompt_tokens=self.prompt_tokens, completion_tokens=tokens, total_tokens=self.prompt_tokens + tokens
        )

    def _chunk(self, delta: Delta, finish_reason: FinishReason | None = None) -> CompletionChunk:
        # Tokens that end within a character have no text of their own; the next chunk has their log-probabilities.
        new, self.sent_logprobs = self.logprobs[self.sent_logprobs :], len(self.logprobs)
        logprobs = ChoiceLogprobs(content=new) if new else None
        choice = ChunkChoice(delta=delta, logprobs=logprobs, finish_reason=finish_reason)
        return CompletionChunk(id=self.id, created=self.created, model=self.model, choices=[choice])


def _finish_reason(end: AnswerEnds) -> FinishReason:
    return "stop" if end.reason in ("end_token", "stop") else "length"


def _token_logprob(token: AnswerToken) -> TokenLogprob:
    return TokenLogprob(**_top_logprob(token).model_dump(), top_logprobs=[_top_logprob(each) for each in token.top])


def _top_logprob(token: TokenChoice) -> TopLogprob:
    is_part = _REPLACEMENT in token.text
    return TopLogprob(
        token=token.text,
        logprob=max(token.logprob, _LEAST_LOGPROB),
        bytes=None if is_part else list(token.text.encode("utf-8")),
    )


def _served(model: NamedModel) -> ServedModel:
    return ServedModel(
        id=model.name,
        created=int(model.saved_at),
        owned_by="merlina" if model.side == "tuned" else "base",
        job_id=model.job_id,
        parent=model.parent,
    )
