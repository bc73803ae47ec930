"""Chatting with a trained model and its base, and comparing their answers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, RootModel, field_validator

from merlina.schemas.base import RequestModel, ResponseModel

Side = Literal["base", "tuned"]
Place = Literal["left", "right"]
Better = Literal["left", "right", "tie"]
Winner = Literal["base", "tuned", "tie"]


class ChatMessage(RequestModel):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"] = Field(description="a system message stands first, if there is one")
    content: str = Field(min_length=1, max_length=65_536)

    @field_validator("content")
    @classmethod
    def _says_something(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("is empty")
        return value


class Sampling(RequestModel):
    """How tokens are drawn. The same seed gives the same answer again, as long as device and libraries are the same."""

    max_new_tokens: int = Field(default=256, ge=1, le=8192, description="the answer's length at most, in tokens")
    temperature: float = Field(
        default=0.7, ge=0, le=2, description="divides the logits before the softmax; 0 always takes the likeliest token"
    )
    top_p: float = Field(
        default=0.95, gt=0, le=1, description="draw from the fewest likeliest tokens that have this much probability"
    )
    seed: int = Field(default=42, ge=0, le=2**32 - 1, description="of the draw")


class Prompt(Sampling):
    """What is asked of a job's model."""

    job_id: str = Field(max_length=64, description="the job that trained the model; it is loaded where it isn't yet")
    messages: list[ChatMessage] = Field(
        min_length=1, max_length=1000, description="the conversation so far; the last turn is the user's"
    )

    @field_validator("messages")
    @classmethod
    def _can_be_answered(cls, value: list[ChatMessage]) -> list[ChatMessage]:
        if any(message.role == "system" for message in value[1:]):
            raise ValueError("a system message can only be the first")
        if value[-1].role != "user":
            raise ValueError(f"the last turn is the {value[-1].role}'s; it must be the user's, to be answered")
        return value


class LoadRequest(RequestModel):
    """`POST /chat/load`."""

    job_id: str = Field(max_length=64, description="a job whose model was saved")
    with_base: bool = Field(
        default=True,
        description="load the base beside a model of which every weight was trained, for twice the memory; an adapter "
        "has its base anyway",
    )
    force: bool = Field(
        default=False,
        description="load it even beside a run, or where memory may not suffice; holds for this job until its model is "
        "let go",
    )


class AnswerRequest(Prompt):
    """`POST /chat/answer`."""

    side: Side = Field(default="tuned", description="tuned: the trained model; base: what it was trained from")


class ChatState(ResponseModel):
    """The model that is loaded for chat, if any."""

    state: Literal["empty", "loading", "ready", "answering"]
    job_id: str | None = None
    with_base: bool = Field(default=False, description="whether the base can be asked without loading anything more")
    gpu: int | None = Field(default=None, description="the GPU it is on; null: on the CPU, or nothing is loaded")
    needed_mb: int | None = Field(
        default=None, description="what it was estimated to need before it was loaded, in MiB"
    )
    memory_mb: int | None = Field(default=None, description="what it holds, in MiB: of the GPU, or without one of RAM")
    idle_until: str | None = Field(
        default=None, description="when it is let go unless something is asked; null while it works"
    )


class AnswerBegins(ResponseModel):
    """The first line of an answer."""

    type: Literal["begin"]
    job_id: str
    side: Side
    prompt: str = Field(description="the text the model is given, formatted as in training")
    prompt_tokens: int


class AnswerText(ResponseModel):
    """The next piece of an answer."""

    type: Literal["text"]
    text: str


class AnswerEnds(ResponseModel):
    """The last line of an answer."""

    type: Literal["end"]
    reason: Literal["end_token", "max_new_tokens", "max_positions"] = Field(
        description="it said that it had ended, or was cut off: as asked, or since the model has no more positions"
    )
    tokens: int = Field(description="tokens that were drawn, the end token among them")
    seconds: float


class AnswerFails(ResponseModel):
    """The last line of an answer that broke off."""

    type: Literal["error"]
    error: str


class AnswerLine(
    RootModel[Annotated[AnswerBegins | AnswerText | AnswerEnds | AnswerFails, Field(discriminator="type")]]
):
    """One line of `POST /chat/answer`."""


class GivenAnswers(RequestModel):
    """Answers that are there already."""

    base: str = Field(max_length=65_536)
    tuned: str = Field(max_length=65_536)


class ComparisonRequest(Prompt):
    """`POST /chat/comparisons`."""

    answers: GivenAnswers | None = Field(default=None, description="left out: both are generated now")


class Vote(RequestModel):
    """`POST /chat/comparisons/{comparison_id}/vote`."""

    better: Better


class Comparison(ResponseModel):
    """Two answers to one prompt, side by side; which is whose is told by the vote."""

    comparison_id: str
    job_id: str
    messages: list[ChatMessage]
    left: str
    right: str
    created_at: str = Field(description="UTC, ISO 8601 with offset")
    better: Better | None = Field(description="the vote; null until there is one")
    tuned: Place | None = Field(description="where the tuned model's answer stands; null until the vote")
    winner: Winner | None = Field(description="whose answer was better; null until the vote")


class Tally(ResponseModel):
    """The votes on a job's model."""

    wins: int = Field(description="votes for the tuned model")
    losses: int = Field(description="votes for its base")
    ties: int
    open: int = Field(description="comparisons without a vote")
    win_rate: float | None = Field(description="wins / (wins + losses); ties don't count; null without any of the two")
    win_rate_low: float | None = Field(description="lower end of its 95 % confidence interval (Wilson)")
    win_rate_high: float | None = Field(description="upper end of the interval")


class ComparisonList(ResponseModel):
    """A job's comparisons, newest first, and how they went."""

    job_id: str
    tally: Tally
    comparisons: list[Comparison]
    count: int = Field(description="comparisons on this page")
    total: int = Field(description="comparisons on all pages")
