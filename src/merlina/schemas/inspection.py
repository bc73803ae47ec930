"""What the helper process finds out about a run before it starts, for the checks and the answers made of it."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from merlina.domain.targets import Site
from merlina.schemas.datasets import DataFinding


class _Facts(BaseModel):
    model_config = ConfigDict(frozen=True, protected_namespaces=())


class ModelFacts(_Facts):
    """What a model's configuration says of its size; every number counts weights or widths, none bytes."""

    model_type: str
    architecture: str
    parameters: int
    linear_parameters: int = Field(description="weights of linear layers other than the output head; 4-bit holds these")
    hidden_size: int
    intermediate_size: int
    attention_size: int = Field(description="width of all attention heads together")
    attention_heads: int
    caps_scores: bool = Field(
        description="whether attention caps its scores, which no kernel does without keeping them"
    )
    drops_scores: bool = Field(description="whether the configuration has attention dropout")
    supports_packing: bool = Field(
        description="whether it can be trained on packs; false where its own way is known to be the only one beforehand"
    )
    layers: int
    vocab_size: int = Field(description="token ids that both the embedding and the output head have")
    max_positions: int | None
    learned_positions: bool = Field(description="whether each position has weights, so that there are no more of them")
    sites: list[Site] = Field(description="what can take an adapter, in groups of layers of the same name")


class TokenizerFacts(_Facts):
    """What a preview and a format need to know of a tokenizer."""

    vocab_size: int
    model_max_length: int = Field(
        description="the longest text in tokens: the tokenizer's limit, otherwise the model's positions; a model "
        "without a limit takes what max_length allows at most"
    )
    has_chat_template: bool
    chat_template_preview: str | None
    pad_token: str | None
    eos_token: str | None
    bos_token: str | None


class PairTokens(_Facts):
    """How many tokens the parts of a pair have, as means over pairs."""

    prompt: float
    chosen: float
    rejected: float


class DataFacts(_Facts):
    """The first rows of a data set as a run would read them."""

    rows: int = Field(description="rows looked at")
    all_rows: bool = Field(description="whether those are all there are")
    usable: int
    longest: int | None = Field(description="tokens of the longest prompt with answer; null without tokenizer")
    highest_id: int | None = Field(description="the highest token id among them; null without tokenizer")
    highest_id_row: int | None = Field(default=None, description="the row that has it; null without tokenizer")
    most_tokens: int | None = Field(description="the most tokens a pair's prompt and two answers have together")
    mean_tokens: PairTokens | None = Field(default=None, description="null without tokenizer")
    findings: list[DataFinding]


class RunFacts(_Facts):
    """Model, tokenizer and data of a run; what could not be read is null beside its error in words."""

    model: ModelFacts | None
    model_error: str | None
    missing_markers: list[str] = Field(description="the chat format's markers that are no token of the tokenizer")
    tokenizer_error: str | None
    data: DataFacts | None
    data_error: str | None
