"""Where rows come from, how their columns are named and how they become text (the contract, "Datasets")."""

from __future__ import annotations

import re
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from merlina.schemas.base import RequestModel, ResponseModel, Token
from merlina.schemas.parsing.validation_errors import at_field

SourceType = Literal["huggingface", "local_file", "upload"]
FileFormat = Literal["json", "jsonl", "csv", "parquet"]
TrainingMode = Literal["orpo", "dpo", "simpo", "cpo", "ipo", "kto", "sft"]
FormatType = Literal["chatml", "llama3", "mistral", "qwen3", "tokenizer", "custom"]
PairColumn = Literal["prompt", "chosen", "rejected", "system", "reasoning"]

FindingKind = Literal[
    "unusable",
    "empty_side",
    "differing_prompts",
    "identical_answers",
    "duplicates",
    "evaluation_leak",
    "markers_in_text",
    "over_max_length",
    "length_bias",
]

_REPO_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*(/[A-Za-z0-9][A-Za-z0-9_.-]*)?")
_DATASET_ID = re.compile(r"upload_[0-9]{8}_[0-9]{6}_[0-9a-f]{8}")
_NEEDED: dict[SourceType, str] = {"huggingface": "repo_id", "local_file": "file_path", "upload": "dataset_id"}


class DatasetSource(RequestModel):
    """Where the rows are. `source_type` says which of the other fields must be given."""

    source_type: SourceType = Field(description="huggingface (the Hub), local_file (on the server) or upload")
    repo_id: str | None = Field(
        default=None,
        max_length=200,
        description="huggingface: the data set's id, `org/name`",
        json_schema_extra={"pattern": f"^{_REPO_ID.pattern}$"},
    )
    split: str = Field(default="train", min_length=1, description="huggingface: the split to read")
    file_path: str | None = Field(default=None, min_length=1, description="local_file: path on the server's machine")
    file_format: FileFormat | None = Field(
        default=None, description="left out: found from the name, else from the content"
    )
    dataset_id: str | None = Field(
        default=None,
        description="upload: the id the upload was answered with",
        json_schema_extra={"pattern": f"^{_DATASET_ID.pattern}$"},
    )

    @field_validator("split", mode="before")
    @classmethod
    def _default_split(cls, value: Any) -> Any:
        return "train" if value is None else value

    @field_validator("repo_id")
    @classmethod
    def _is_a_repo_id(cls, value: str | None) -> str | None:
        if value is not None and not _REPO_ID.fullmatch(value):
            raise ValueError(f"{value[:100]!r} is no Hub id; it looks like org/name, in letters, digits, '.', '_', '-'")
        return value

    @field_validator("dataset_id")
    @classmethod
    def _is_an_upload(cls, value: str | None) -> str | None:
        if value is not None and not _DATASET_ID.fullmatch(value):
            raise ValueError(f"{value[:100]!r} is no upload's id; it looks like upload_20260101_120000_a1b2c3d4")
        return value

    @model_validator(mode="after")
    def _needs_its_field(self) -> Self:
        needed = _NEEDED[self.source_type]
        if getattr(self, needed) is None:
            raise at_field(needed, f"source_type {self.source_type!r} needs it")
        return self


class CustomTemplates(RequestModel):
    """The text put around each part of a conversation by the format `custom`."""

    system_prefix: str = ""
    system_suffix: str = ""
    user_prefix: str = ""
    user_suffix: str = ""
    assistant_prefix: str = ""
    assistant_suffix: str = ""


class DatasetFormat(RequestModel):
    """How a conversation becomes the text the model reads."""

    format_type: FormatType = Field(
        default="chatml", description="the chat format; tokenizer uses the model's own template"
    )
    custom_templates: CustomTemplates | None = Field(
        default=None, description="needed by the format custom, unused elsewhere"
    )
    enable_thinking: bool = Field(default=True, description="qwen3: keep the reasoning before the answer")

    @model_validator(mode="after")
    def _custom_needs_templates(self) -> Self:
        if self.format_type == "custom" and self.custom_templates is None:
            raise at_field("custom_templates", "format_type 'custom' needs them")
        return self


class DatasetConfig(RequestModel):
    """A preference data set: where it is, how it is read, how much of it is held out."""

    source: DatasetSource
    format: DatasetFormat = Field(default_factory=lambda: DatasetFormat())
    model_name: str | None = Field(
        default=None,
        min_length=1,
        description="whose chat template a preview in the format tokenizer uses; runs use base_model",
    )
    column_mapping: dict[str, PairColumn] | None = Field(
        default=None, description="{their column: our column}; ours are prompt, chosen, rejected, system, reasoning"
    )
    test_size: float = Field(
        default=0.01, ge=0, lt=1, description="share of the rows held out for evaluation; 0 holds out none"
    )
    max_samples: int | None = Field(default=None, ge=1, description="use the first so many rows only")
    training_mode: TrainingMode | None = Field(
        default=None,
        description="the run's training_mode, as older clients send it; a preview for sft needs no rejected answers",
    )

    @field_validator("column_mapping")
    @classmethod
    def _one_source_per_column(cls, value: dict[str, PairColumn] | None) -> dict[str, PairColumn] | None:
        targets = list((value or {}).values())
        twice = sorted({target for target in targets if targets.count(target) > 1})
        if twice:
            raise ValueError(f"two columns are mapped to {', '.join(twice)}; map one")
        return value


class DatasetQuestion(DatasetConfig):
    """`POST /dataset/preview`, `/dataset/preview-formatted`, `/dataset/columns`: a data set, and a token to read it."""

    hf_token: Token | None = Field(default=None, description="for private and gated data sets and models; not stored")


class DataFinding(ResponseModel):
    """Something about the rows that one should know before training on them."""

    kind: FindingKind
    count: int = Field(description="rows it is true of, among those looked at")
    rows: list[int] = Field(description="the numbers of a few of them, from 1")
    message: str


class PreviewResponse(ResponseModel):
    """Rows as they are in the file, or as the text that is trained on."""

    status: Literal["success"] = "success"
    samples: list[dict[str, Any]] = Field(
        description="the file's columns; or, as trained on, prompt, chosen and rejected, the number of their row from "
        "1, and with model_name their tokens and cut"
    )
    num_samples: int = Field(description="how many samples came back")
    total_rows: int | None = Field(
        default=None, description="rows in the whole data set; null where counting means reading it"
    )
    warnings: list[str] = Field(default_factory=list, description="rows left out of the samples, each with its reason")
    findings: list[DataFinding] = Field(
        default_factory=list, description="what the first rows_examined rows have about them that one should know"
    )
    rows_examined: int = 0


class ColumnsResponse(ResponseModel):
    """What columns a data set has, with its first rows, so that they can be mapped to ours."""

    status: Literal["success"] = "success"
    columns: list[str]
    samples: list[dict[str, Any]]
    total_rows: int | None = Field(description="rows in the whole data set; null where counting means a download")
    suggested_mapping: dict[str, PairColumn] = Field(description="the column_mapping that the names suggest")
    warnings: list[str] = Field(default_factory=list, description="what of the columns is not listed")


class UploadResponse(ResponseModel):
    """An accepted upload."""

    status: Literal["success"] = "success"
    dataset_id: str
    filename: str
    size: int = Field(description="bytes")
    file_format: FileFormat
    total_rows: int


class UploadEntry(ResponseModel):
    """One upload in the list."""

    dataset_id: str
    filename: str
    size: int = Field(description="bytes")
    file_format: FileFormat
    total_rows: int
    created_at: str = Field(description="UTC, ISO 8601 with offset")


class UploadList(ResponseModel):
    """All uploads, newest first."""

    datasets: list[UploadEntry]


class UploadDeleted(ResponseModel):
    """What became of a request to delete an upload."""

    status: Literal["success"] = "success"
    message: str
    dataset_id: str
