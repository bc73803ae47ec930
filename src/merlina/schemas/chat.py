"""Request and response models of chat with a trained model and its base model, and of blind comparisons."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, RootModel, ValidationInfo, field_validator

from merlina.schemas.base import RequestModel, ResponseModel

Side = Literal["base", "tuned"]
Position = Literal["left", "right"]
Verdict = Literal["left", "right", "tie"]
Winner = Literal["base", "tuned", "tie"]
StopText = Annotated[str, Field(min_length=1, max_length=256)]
StopTexts = Annotated[list[StopText], Field(max_length=4)]
MAX_MESSAGE_LENGTH = 65_536
EndReason = Literal["end_token", "stop", "max_new_tokens", "max_positions"]


class ChatMessage(RequestModel):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"] = Field(description="A system message must be the first one.")
    content: str = Field(
        max_length=MAX_MESSAGE_LENGTH,
        description="Only an assistant's may be empty, since a model may answer with its end token alone.",
    )

    @field_validator("content")
    @classmethod
    def _is_not_blank(cls, value: str, info: ValidationInfo) -> str:
        if not value.strip() and info.data.get("role") != "assistant":
            raise ValueError("is empty")
        return value


class Sampling(RequestModel):
    """Sampling parameters. The same seed reproduces an answer on the same device with the same library versions."""

    max_new_tokens: int = Field(default=256, ge=1, le=8192, description="Maximum length of the answer in tokens.")
    temperature: float = Field(
        default=0.7, ge=0, le=2, description="Divisor of the logits before the softmax; 0 selects greedy decoding."
    )
    top_p: float = Field(
        default=0.95,
        gt=0,
        le=1,
        description="Nucleus sampling: sample from the smallest set of tokens with this total probability.",
    )
    seed: int = Field(default=42, ge=0, le=2**32 - 1, description="Random seed.")
    stop: StopTexts = Field(
        default_factory=list, description="Texts at which the answer ends; they are not part of it."
    )


def check_conversation(messages: Sequence[ChatMessage]) -> None:
    """Raise ValueError unless the conversation, of at least one message, can be answered."""
    if any(message.role == "system" for message in messages[1:]):
        raise ValueError("only the first message may be a system message")
    if messages[-1].role != "user":
        raise ValueError(f"the last message has the role {messages[-1].role!r}; it must be 'user'")


class Prompt(Sampling):
    """A conversation to be answered by a job's model."""

    job_id: str = Field(max_length=64, description="Job that trained the model, which is loaded if necessary.")
    messages: list[ChatMessage] = Field(
        min_length=1, max_length=1000, description="Conversation so far; the last message must be the user's."
    )

    @field_validator("messages")
    @classmethod
    def _can_be_answered(cls, value: list[ChatMessage]) -> list[ChatMessage]:
        check_conversation(value)
        return value


class LoadRequest(RequestModel):
    """`POST /chat/load`."""

    job_id: str = Field(max_length=64, description="Job with a saved model.")
    with_base: bool = Field(
        default=True,
        description="Also load the base model of a fully trained model, for twice the memory; an adapter always "
        "includes its base model.",
    )
    force: bool = Field(
        default=False,
        description="Load the model even if a run uses the memory or too little is free; applies to this job until its "
        "model is unloaded.",
    )


class AnswerRequest(Prompt):
    """`POST /chat/answer`."""

    side: Side = Field(
        default="tuned", description="tuned: the trained model; base: the model that it was trained from."
    )


class ChatState(ResponseModel):
    """The model loaded for chat, if any."""

    state: Literal["empty", "loading", "ready", "answering"]
    job_id: str | None = None
    with_base: bool = Field(default=False, description="Whether the base model is loaded as well.")
    gpu: int | None = Field(
        default=None, description="Index of the GPU; null: the model is on the CPU, or none is loaded."
    )
    needed_mb: int | None = Field(default=None, description="Estimated memory before loading, in MiB.")
    memory_mb: int | None = Field(
        default=None, description="Memory that the model takes on the GPU or, without one, in RAM, in MiB."
    )
    idle_until: str | None = Field(
        default=None, description="Time at which an idle model is unloaded; null while it is in use."
    )


class AnswerBegins(ResponseModel):
    """The first line of an answer."""

    type: Literal["begin"]
    job_id: str
    side: Side
    prompt: str = Field(description="The model's input, formatted as in training.")
    prompt_tokens: int


class AnswerText(ResponseModel):
    """The next piece of an answer."""

    type: Literal["text"]
    text: str


class AnswerEnds(ResponseModel):
    """The last line of an answer."""

    type: Literal["end"]
    reason: EndReason = Field(
        description="end_token: the answer is complete; stop: it reached a stop text; otherwise it was truncated at "
        "max_new_tokens or max_positions."
    )
    tokens: int = Field(description="Number of generated tokens, including the end token.")
    seconds: float


class AnswerFails(ResponseModel):
    """The last line of an answer that failed."""

    type: Literal["error"]
    error: str


class AnswerLine(
    RootModel[Annotated[AnswerBegins | AnswerText | AnswerEnds | AnswerFails, Field(discriminator="type")]]
):
    """One line of `POST /chat/answer`."""


class GivenAnswers(RequestModel):
    """Answers that exist already."""

    base: str = Field(max_length=65_536)
    tuned: str = Field(max_length=65_536)


class ComparisonRequest(Prompt):
    """`POST /chat/comparisons`."""

    answers: GivenAnswers | None = Field(default=None, description="Omit to generate both answers now.")


class Vote(RequestModel):
    """`POST /chat/comparisons/{comparison_id}/vote`."""

    better: Verdict


class Comparison(ResponseModel):
    """Two answers to one prompt, side by side; the vote reveals which one is the tuned model's."""

    comparison_id: str
    job_id: str
    messages: list[ChatMessage]
    left: str
    right: str
    created_at: str = Field(description="UTC, ISO 8601 with offset.")
    better: Verdict | None = Field(description="The vote; null before it.")
    tuned: Position | None = Field(
        description="Position of the tuned model's answer, left or right; null before the vote."
    )
    winner: Winner | None = Field(description="Model with the better answer; null before the vote.")


class Tally(ResponseModel):
    """The votes on a job's model."""

    wins: int = Field(description="Votes for the tuned model.")
    losses: int = Field(description="Votes for the base model.")
    ties: int
    open: int = Field(description="Comparisons without a vote.")
    win_rate: float | None = Field(
        description="wins / (wins + losses); ties do not count; null without wins and losses."
    )
    win_rate_low: float | None = Field(description="Lower bound of the 95 % confidence interval (Wilson).")
    win_rate_high: float | None = Field(description="Upper bound of the interval.")


class ComparisonList(ResponseModel):
    """A job's comparisons, newest first, and the votes on all of them."""

    job_id: str
    tally: Tally
    comparisons: list[Comparison]
    count: int = Field(description="Comparisons on this page.")
    total: int = Field(description="Comparisons on all pages.")
