"""Requests and responses of `/v1`, in the form of OpenAI's Chat Completions API."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, ValidationInfo, field_validator, model_validator

from merlina.schemas.base import RequestModel, ResponseModel
from merlina.schemas.chat import (
    MAX_MESSAGE_LENGTH,
    ChatMessage,
    Sampling,
    StopTexts,
    check_conversation,
)
from merlina.schemas.parsing.validation_errors import at_field

FinishReason = Literal["stop", "length"]
_MAX_TOKENS = 8192
_NO_EFFECT = "Not supported: accepted only with a value that has no effect."


def _only(*neutral: Any) -> AfterValidator:
    """Accept the values of a field that is not supported with which it has no effect, as clients send them."""
    values = " or ".join(json.dumps(value) for value in neutral)

    def check(value: Any) -> Any:
        if value is not None and value not in neutral:
            raise ValueError(f"is not supported: leave it out{f' or send {values}' if values else ''}")
        return value

    return AfterValidator(check)


class TextPart(RequestModel):
    """A part of a message's content. Other types, such as images, are not supported."""

    type: Literal["text"]
    text: str


class CompletionMessage(RequestModel):
    """One turn of a conversation. Answers can be sent back with all the fields that clients give them."""

    role: Literal["system", "developer", "user", "assistant"] = Field(description="developer is the same as system.")
    content: list[TextPart] = Field(
        default_factory=list,
        validate_default=True,
        description="Parts, which are joined; a text is the same as one part.",
    )
    name: str | None = Field(default=None, max_length=64, description="Accepted; not part of the model's input.")
    refusal: Annotated[str | None, _only()] = Field(default=None, description="Not supported, as the next ones.")
    annotations: Annotated[list[Any] | None, _only([])] = None
    audio: Annotated[dict[str, Any] | None, _only()] = None
    function_call: Annotated[dict[str, Any] | None, _only()] = None
    tool_calls: Annotated[list[Any] | None, _only([])] = None
    parsed: Annotated[Any, _only()] = None

    @field_validator("content", mode="before")
    @classmethod
    def _may_be_text(cls, value: Any, info: ValidationInfo) -> Any:
        if value is None and info.data.get("role") == "assistant":
            return []
        return [{"type": "text", "text": value}] if isinstance(value, str) else value

    @field_validator("content")
    @classmethod
    def _is_short_text(cls, value: list[TextPart], info: ValidationInfo) -> list[TextPart]:
        text = "".join(part.text for part in value)
        if not text.strip() and info.data.get("role") != "assistant":
            raise ValueError("is empty")
        if len(text) > MAX_MESSAGE_LENGTH:
            raise ValueError(f"has {len(text):,} characters; at most {MAX_MESSAGE_LENGTH:,} are allowed")
        return value

    def as_chat(self) -> ChatMessage:
        """Return the message as in `POST /chat/answer`."""
        role = "system" if self.role == "developer" else self.role
        return ChatMessage(role=role, content="".join(part.text for part in self.content))


class StreamOptions(RequestModel):
    """Options of a streamed response."""

    include_usage: bool = Field(default=False, description="End the stream with a chunk that has `usage`.")
    include_obfuscation: bool | None = Field(default=None, description="Accepted; chunks are never obfuscated.")


class CompletionRequest(RequestModel):
    """`POST /v1/chat/completions`."""

    model: str = Field(
        min_length=1,
        max_length=4096,
        description="Name of a finished model, job id, or base model of a finished model (see `GET /v1/models`).",
    )
    messages: list[CompletionMessage] = Field(
        min_length=1, max_length=1000, description="Conversation so far; the last message must be the user's."
    )
    max_completion_tokens: int | None = Field(
        default=None,
        ge=1,
        description="Maximum length of the answer in tokens, of which there are at most 8192. Default: 8192.",
    )
    max_tokens: int | None = Field(default=None, ge=1, description="Older name of max_completion_tokens.")
    temperature: float | None = Field(
        default=None,
        ge=0,
        le=2,
        description="Divisor of the logits before the softmax; 0 selects greedy decoding. Default: 1.",
    )
    top_p: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="Nucleus sampling: sample from the smallest set of tokens with this total probability. Default: 1.",
    )
    seed: int | None = Field(
        default=None, ge=0, le=2**32 - 1, description="Random seed. Default: a different one for each request."
    )
    stop: StopTexts | None = Field(
        default=None, description="Text, or up to four, at which the answer ends; not part of the answer."
    )
    logprobs: bool | None = Field(default=None, description="Return the log-probability of each token of the answer.")
    top_logprobs: int | None = Field(
        default=None, ge=0, le=20, description="Number of most probable tokens at each position; needs logprobs."
    )
    stream: bool | None = Field(default=None, description="Send the answer in chunks, as server-sent events.")
    stream_options: StreamOptions | None = Field(default=None, description="Needs stream.")
    n: int | None = Field(default=None, ge=1, le=1, description="Number of answers; only 1 is supported.")
    user: str | None = Field(default=None, max_length=512, description="Accepted; does not change the answer.")
    service_tier: str | None = Field(default=None, max_length=64, description="Accepted; does not change the answer.")
    metadata: dict[str, Any] | None = Field(default=None, description="Accepted; does not change the answer.")
    store: bool | None = Field(default=None, description="Accepted; answers are never stored.")
    parallel_tool_calls: bool | None = Field(default=None, description="Accepted; does not change the answer.")
    frequency_penalty: Annotated[float | None, _only(0)] = Field(default=None, description=_NO_EFFECT)
    presence_penalty: Annotated[float | None, _only(0)] = Field(default=None, description=_NO_EFFECT)
    logit_bias: Annotated[dict[str, float] | None, _only({})] = Field(default=None, description=_NO_EFFECT)
    response_format: Annotated[dict[str, Any] | None, _only({"type": "text"})] = Field(
        default=None, description=_NO_EFFECT
    )
    modalities: Annotated[list[str] | None, _only(["text"])] = Field(default=None, description=_NO_EFFECT)
    tools: Annotated[list[Any] | None, _only([])] = Field(default=None, description=_NO_EFFECT)
    tool_choice: Annotated[str | dict[str, Any] | None, _only("none", "auto")] = Field(
        default=None, description=_NO_EFFECT
    )
    functions: Annotated[list[Any] | None, _only([])] = Field(default=None, description=_NO_EFFECT)
    function_call: Annotated[str | dict[str, Any] | None, _only("none", "auto")] = Field(
        default=None, description=_NO_EFFECT
    )
    reasoning_effort: Annotated[str | None, _only("none")] = Field(default=None, description=_NO_EFFECT)
    verbosity: Annotated[str | None, _only("medium")] = Field(default=None, description=_NO_EFFECT)
    audio: Annotated[dict[str, Any] | None, _only()] = Field(default=None, description=_NO_EFFECT)
    prediction: Annotated[dict[str, Any] | None, _only()] = Field(default=None, description=_NO_EFFECT)
    web_search_options: Annotated[dict[str, Any] | None, _only()] = Field(default=None, description=_NO_EFFECT)

    @field_validator("stop", mode="before")
    @classmethod
    def _may_be_one(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_validator("messages")
    @classmethod
    def _can_be_answered(cls, value: list[CompletionMessage]) -> list[CompletionMessage]:
        check_conversation([message.as_chat() for message in value])
        return value

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if self.top_logprobs and not self.logprobs:
            raise at_field("top_logprobs", "needs logprobs to be true")
        if self.stream_options is not None and not self.stream:
            raise at_field("stream_options", "needs stream to be true")
        if self.max_tokens is not None and self.max_completion_tokens not in (None, self.max_tokens):
            raise at_field("max_tokens", f"{self.max_tokens} differs from max_completion_tokens; leave it out")
        return self

    def sampling(self, seed: int) -> Sampling:
        """Return the sampling parameters; `seed` is used if the request has none."""
        return Sampling(
            max_new_tokens=min(self.max_completion_tokens or self.max_tokens or _MAX_TOKENS, _MAX_TOKENS),
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            seed=seed if self.seed is None else self.seed,
            stop=self.stop or [],
        )


class ServedModel(ResponseModel):
    """A model that can be named in requests."""

    id: str
    object: Literal["model"] = "model"
    created: int = Field(description="Time at which the job ended, in epoch seconds.")
    owned_by: str
    job_id: str = Field(description="Job that trained the model, or that trained another model from this base model.")
    parent: str | None = Field(description="The base model of a finished model; null for a base model.")


class ServedModels(ResponseModel):
    """`GET /v1/models`."""

    object: Literal["list"] = "list"
    data: list[ServedModel]


class TopLogprob(ResponseModel):
    """A token and the natural logarithm of its probability."""

    token: str
    logprob: float = Field(description="At least -9999, also for a token that the model excludes.")
    bytes: list[int] | None = Field(description="UTF-8 bytes of the token; null if it is a part of a character.")


class TokenLogprob(TopLogprob):
    """A token of the answer, and the most probable tokens at its position."""

    top_logprobs: list[TopLogprob]


class ChoiceLogprobs(ResponseModel):
    """Log-probabilities of an answer's tokens, by the model itself: before temperature and top_p."""

    content: list[TokenLogprob]
    refusal: None = None


class AnswerMessage(ResponseModel):
    """The answer."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class Choice(ResponseModel):
    """The answer and why it ended."""

    index: int = 0
    message: AnswerMessage
    logprobs: ChoiceLogprobs | None
    finish_reason: FinishReason = Field(
        description="stop: an end token or a stop text; length: the maximum length or the model's last position."
    )


class Usage(ResponseModel):
    """Numbers of tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Completion(ResponseModel):
    """`POST /v1/chat/completions`."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int = Field(description="Epoch seconds.")
    model: str
    choices: list[Choice]
    usage: Usage


class Delta(ResponseModel):
    """What a chunk adds to the answer."""

    role: Literal["assistant"] | None = None
    content: str | None = None


class ChunkChoice(ResponseModel):
    """A part of the answer; the last one has a finish_reason."""

    index: int = 0
    delta: Delta
    logprobs: ChoiceLogprobs | None = None
    finish_reason: FinishReason | None = None


class CompletionChunk(ResponseModel):
    """One server-sent event of a streamed completion."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice] = Field(description="Empty in the chunk that has `usage`.")
    usage: Usage | None = None


class CompletionError(ResponseModel):
    """What is wrong with a request."""

    message: str
    type: Literal["invalid_request_error", "server_error"]
    param: str | None = Field(description="The field that the message is about.")
    code: str | None


class CompletionErrorResponse(ResponseModel):
    """The body of errors of the routes below `/v1`; a request that reaches no route gets an ErrorResponse."""

    error: CompletionError
