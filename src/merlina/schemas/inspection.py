"""Facts about a run's model, tokenizer and data, which helper processes gather before the run starts."""

from __future__ import annotations

from itertools import zip_longest
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from merlina.domain.adapter_targets import Site
from merlina.domain.conversion_rules import FIRST_RULES
from merlina.schemas.datasets.responses import DataFinding, DetectedFormat, LengthHistogram

ROWS_PER_BLOCK = 1000


class _Facts(BaseModel):
    model_config = ConfigDict(frozen=True, protected_namespaces=())


class ModelFacts(_Facts):
    """The sizes that a model's configuration implies, as numbers of weights and widths, never in bytes."""

    model_type: str
    parameters: int
    linear_parameters: int = Field(
        description="weights of linear layers other than the output head; these are quantized"
    )
    hidden_size: int
    intermediate_size: int
    attention_size: int = Field(description="total width of all attention heads")
    attention_heads: int
    caps_scores: bool = Field(
        description="whether attention soft-caps its scores, which no kernel does without storing them"
    )
    drops_scores: bool = Field(description="whether the configuration has attention dropout")
    supports_packing: bool = Field(
        description="whether it can be trained on packs; false if it is known beforehand to need padded batches"
    )
    layers: int
    vocab_size: int = Field(description="number of token ids that both the embedding and the output head have")
    max_positions: int | None
    learned_positions: bool = Field(description="whether positions have learned embeddings, which limits their number")
    sites: list[Site] = Field(description="modules that can take an adapter, as groups of layers of the same name")


class TokenizerFacts(_Facts):
    """The properties of a tokenizer that previews and chat formats depend on."""

    vocab_size: int
    model_max_length: int = Field(
        description="maximum length of a text in tokens: the tokenizer's limit, otherwise the model's number of "
        "positions; for a model without a limit, the maximum of max_length"
    )
    has_chat_template: bool
    chat_template_preview: str | None
    pad_token: str | None
    eos_token: str | None
    bos_token: str | None


class _PairMeans(_Facts):
    prompt: float
    chosen: float
    rejected: float = Field(description="0 without pairs: single answers all count as chosen")


class PairTokens(_PairMeans):
    """Mean numbers of tokens of the parts of a pair."""


class PairCharacters(_PairMeans):
    """Mean numbers of characters in the messages of a pair."""


class TokenLengths(_Facts):
    """Lengths of pairs in tokens: of the prompt with its longest answer, before truncation."""

    percentile_95: int = Field(description="the length that 95 % of the pairs do not exceed")
    max_length: int
    over_max_length: int = Field(description="number of pairs that are longer than max_length")
    histogram: LengthHistogram


class DataFacts(_Facts):
    """The first rows of a data set as a run would read them; the fields about tokens are null without a tokenizer."""

    rows: int = Field(description="number of rows examined")
    all_rows: bool = Field(description="whether the data set has no further rows")
    usable: int
    longest: int | None = Field(description="most tokens of a prompt with one answer")
    highest_id: int | None = Field(description="the highest token id")
    highest_id_row: int | None = Field(default=None, description="the first row that has it")
    most_tokens: int | None = Field(description="most tokens of a prompt with both answers")
    mean_tokens: PairTokens | None = None
    findings: list[DataFinding]
    notes: list[str] = Field(default=[], description="how the file was decoded, if it is not UTF-8")


class DataReport(_Facts):
    """All rows of a data set as a run would read them; the fields about tokens are null without a model."""

    detected_format: DetectedFormat | None
    notes: list[str] = Field(description="how the file was decoded, if it is not UTF-8")
    rows: int = Field(description="number of rows read")
    skipped: int = Field(description="number of rows that cannot be used")
    pairs: int = Field(description="number of pairs, or of unpaired answers, that the usable rows give")
    mean_characters: PairCharacters
    mean_tokens: PairTokens | None = Field(description="means after truncation to max_length")
    token_lengths: TokenLengths | None
    findings: list[DataFinding]
    example: dict[str, Any] = Field(description="the first pair, in the form of a formatted preview")


class RunFacts(_Facts):
    """Model, tokenizer and data of a run; a part that could not be read is null, with the reason as its error."""

    model: ModelFacts | None
    model_error: str | None
    missing_markers: list[str] = Field(description="markers of the chat format that the tokenizer has no token for")
    tokenizer_error: str | None
    data: DataFacts | None
    data_error: str | None


class FileStamp(BaseModel):
    """File attributes that change when the file is replaced."""

    model_config = ConfigDict(frozen=True)

    size: int
    mtime_ns: int
    inode: int


class Fingerprint(BaseModel):
    """Digests of the usable rows, ROWS_PER_BLOCK rows per block, in order; a row's number is part of its digest.

    `file` is the stamp of the first source's file, and `files` are those of additional sources by their field.
    `begins[i]` is the number of rows before source i + 1, counted from 0, and `evaluation` has a digest of all usable
    rows of each data set to evaluate on, by name. `conversion_rules` is the version of the rules by which rows became
    pairs (`domain/conversion_rules.py`).
    """

    model_config = ConfigDict(frozen=True)

    rows: int
    held_out: int
    blocks: tuple[str, ...]
    file: FileStamp | None = None
    files: dict[str, FileStamp] = {}
    begins: tuple[int, ...] = ()
    evaluation: dict[str, str] = {}
    # Versions before the second rules wrote no version.
    conversion_rules: int = FIRST_RULES

    def difference(self, now: Fingerprint) -> str | None:
        """Describe how the data of a resume differs; None if rows and split are the same."""
        found = []
        if now.rows != self.rows:
            found.append(f"{self.rows:,} usable rows when the run started, {now.rows:,} now")
        if now.held_out != self.held_out:
            found.append(f"{self.held_out:,} pairs held out for evaluation then, {now.held_out:,} now")
        differs = (index for index, (a, b) in enumerate(zip_longest(self.blocks, now.blocks)) if a != b)
        first = next(differs, None)
        if first is not None:
            last = min((first + 1) * ROWS_PER_BLOCK, max(self.rows, now.rows))
            found.append(f"the first difference is in usable rows {first * ROWS_PER_BLOCK + 1:,} to {last:,}")
        if now.begins != self.begins and now.rows == self.rows:
            found.append(
                f"sources that began after rows {_numbers(self.begins)} begin after {_numbers(now.begins)} now"
            )
        names = sorted({*self.evaluation, *now.evaluation})
        changed = [name for name in names if self.evaluation.get(name) != now.evaluation.get(name)]
        if changed:
            found.append(f"other rows to evaluate on in {', '.join(changed)}")
        return "; ".join(found) or None


def _numbers(numbers: tuple[int, ...]) -> str:
    return ", ".join(f"{number:,}" for number in numbers)
