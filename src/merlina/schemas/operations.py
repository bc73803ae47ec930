"""The operations of helper processes and the chat process: each class has the arguments and names the result type.

The server calls `helper.call(CountRows(file=…))` and gets an `int`; `merlina.worker.helper.process` maps each class to
the function that carries it out. `merlina.worker.chat.process` carries out the two of the chat process.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from merlina.domain.data_urls import FileLocation
from merlina.schemas.chat import AnswerEnds, ChatMessage, Sampling, Side
from merlina.schemas.datasets.config import AnswersNeeded, DatasetConfig, RowFilter
from merlina.schemas.datasets.responses import DataFinding, DetectedFormat, LengthHistogram, RowPreview
from merlina.schemas.datasets.sources import Encoding, FileFormat
from merlina.schemas.inspection import DataFacts, DataReport, Fingerprint, ModelFacts, RunFacts, TokenizerFacts
from merlina.schemas.training.config import TrainingConfig

R = TypeVar("R")


class Operation(BaseModel, Generic[R]):
    """Arguments of one operation with a result of type R. Both cross the process boundary as JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    name: ClassVar[str]

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        cls.name = re.sub(r"(?<!^)(?=[A-Z])", "_", cls.__name__).lower()

    @classmethod
    def result_type(cls) -> TypeAdapter[Any]:
        """Return the adapter that converts a result to JSON and back."""
        return _adapter(cls)


@cache
def _adapter(operation: type[Operation[Any]]) -> TypeAdapter[Any]:
    parents = (kind.__pydantic_generic_metadata__ for kind in operation.__mro__ if issubclass(kind, Operation))
    return TypeAdapter(next(parent["args"][0] for parent in parents if parent["args"]))


class RawRows(BaseModel):
    """Rows as stored; `total_rows` if the file states the number (Parquet)."""

    samples: list[dict[str, Any]]
    columns: list[str]
    warnings: list[str]
    detected_format: DetectedFormat | None
    next_row: int | None
    total_rows: int | None


class FormattedRows(BaseModel):
    """Rows in the form that training uses; `total_rows` if the file states the number (Parquet)."""

    samples: list[dict[str, Any]]
    warnings: list[str]
    findings: list[DataFinding]
    rows_examined: int
    detected_format: DetectedFormat | None
    rows: list[RowPreview]
    next_row: int | None
    lengths: LengthHistogram | None
    total_rows: int | None


class ParsedUpload(BaseModel):
    """Format and number of rows of an uploaded file."""

    file_format: FileFormat
    total_rows: int


class PreviewRows(Operation[RawRows]):
    """Read up to `limit` rows of a data set from number `row` on. Raises DataError."""

    config: DatasetConfig
    file: FileLocation | None
    token: str | None = Field(repr=False)
    limit: int
    row: int = 1
    max_row_mb: int


class PreviewFormatted(Operation[FormattedRows]):
    """Format up to `limit` rows from number `row` on, or those that `only` selects.

    With token ids if the configuration has `model_name`. Raises DataError, ModelError.
    """

    config: DatasetConfig
    file: FileLocation | None
    token: str | None = Field(repr=False)
    limit: int
    row: int = 1
    only: RowFilter | None = None
    max_row_mb: int
    max_length: int
    max_prompt_length: int
    trust_remote_code: bool


class DescribeData(Operation[DataReport]):
    """Examine all rows, with token ids if the configuration has `model_name`; reports the number of rows meanwhile.

    Raises DataError if no row can be used, ModelError.
    """

    config: DatasetConfig
    file: FileLocation | None
    token: str | None = Field(repr=False)
    max_row_mb: int
    max_length: int
    max_prompt_length: int
    trust_remote_code: bool


class CountHubRows(Operation[int | None]):
    """Return the number of rows that the Hub states for a split."""

    config: DatasetConfig
    token: str | None = Field(repr=False)


class CountRows(Operation[int]):
    """Count the rows of a whole file. Raises DataError."""

    file: FileLocation
    file_format: FileFormat | None
    encoding: Encoding | None = None
    max_row_mb: int


class ParseUpload(Operation[ParsedUpload]):
    """Read every row of an uploaded file. `filename` is the client's name for it. Raises DataError."""

    file: Path
    filename: str
    max_row_mb: int


class CompareRows(Operation[str | None]):
    """Describe how rows and split of a data set differ from an earlier fingerprint; None if they do not.

    `file` is that of the first source, `source_files` are those of additional ones by their field.
    """

    config: DatasetConfig
    file: Path
    source_files: dict[str, Path]
    answers_needed: AnswersNeeded
    earlier: Fingerprint
    max_row_mb: int


class ExamineRows(Operation[DataFacts]):
    """Examine the first rows of sources as text, for a run without an available tokenizer. Raises DataError.

    `files` are those of the sources to examine by their field.
    """

    config: TrainingConfig
    files: dict[str, FileLocation | None]
    max_row_mb: int


class InspectTokenizer(Operation[TokenizerFacts]):
    """Load a model's tokenizer. Raises ModelError."""

    model_name: str
    token: str | None = Field(repr=False)
    trust_remote_code: bool


class InspectModel(Operation[ModelFacts]):
    """Build a model without its weights. Raises ModelError."""

    model_name: str
    token: str | None = Field(repr=False)
    trust_remote_code: bool


class InspectRun(Operation[RunFacts]):
    """Inspect model, tokenizer and data of a run; errors are part of the result.

    `files` are those of the sources to examine by their field, null for the Hub.
    """

    config: TrainingConfig
    files: dict[str, FileLocation | None]
    token: str | None = Field(repr=False)
    trust_remote_code: bool
    max_row_mb: int


class MeasureMatrixSpeed(Operation[float]):
    """Measure how many floating point operations per second matrix products of this type and width reach."""

    dtype: str
    width: int


class LoadChatModel(Operation[int]):
    """Load the model that a run saved in `model_dir`. Returns the memory that the process then takes, in MiB.

    `token` gives access to the base model's files on the Hub. Raises ModelError; ConflictError if memory does not
    suffice.
    """

    model_dir: Path
    config: TrainingConfig = Field(repr=False)
    with_base: bool
    trust_remote_code: bool
    token: str | None = Field(repr=False)


class TokenChoice(BaseModel):
    """A token as text, and the natural logarithm of its probability at its position."""

    text: str
    logprob: float


class AnswerToken(TokenChoice):
    """A generated token, and the most probable ones at its position, most probable first."""

    type: Literal["token"]
    top: list[TokenChoice]


class FinishedAnswer(BaseModel):
    """The end of an answer, and the memory that the process then takes, in MiB."""

    end: AnswerEnds
    memory_mb: int


class AnswerMessages(Operation[FinishedAnswer]):
    """Answer a conversation with one side of the loaded model; sends AnswerBegins and AnswerText events meanwhile.

    With `top_logprobs`, an AnswerToken with so many of the most probable tokens precedes the text of each token.

    Raises UnusableRowError or InvalidRequestError if the conversation does not fit the format or the model.
    """

    job_id: str
    side: Side
    messages: list[ChatMessage]
    sampling: Sampling
    top_logprobs: int | None = Field(default=None, ge=0)
