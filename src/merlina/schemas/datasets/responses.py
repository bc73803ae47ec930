"""Responses about data sets: previews, columns, findings and uploads (docs/api.md, "Data sets")."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from merlina.schemas.base import ResponseModel
from merlina.schemas.datasets.config import DatasetOption, FindingKind, PairColumn, RowFindingKind, RowFormat
from merlina.schemas.datasets.sources import FileFormat


class DataFinding(ResponseModel):
    """A property of the rows that may harm training."""

    kind: FindingKind
    count: int = Field(description="Number of affected rows among those examined.")
    rows: list[int] = Field(description="Numbers of the first affected rows, from 1.")
    message: str
    option: DatasetOption | None = Field(
        default=None, description="Setting of `dataset` that resolves it when it is true; null if there is none."
    )


class DetectedFormat(ResponseModel):
    """The format of a data set's rows, as detected from the first of them."""

    name: RowFormat
    title: str = Field(description="Name of the format for people, such as OpenAI preference.")


_DETECTED = "Format that the first rows have after column_mapping; null if they have none that is known."


class RowPreview(ResponseModel):
    """A row of a formatted preview, or adjacent rows that are merged into one question with several answers."""

    row: int = Field(description="Number of the row, from 1, or of the first merged row; samples have the same `row`.")
    last_row: int = Field(description="Number of the last merged row; equals `row` if none are merged.")
    stored: list[dict[str, Any]] = Field(description="The row as it is in the file, or up to 5 merged rows.")
    pairs: int = Field(description="Number of pairs that the row gives; `samples` may contain fewer of them.")
    findings: list[RowFindingKind] = Field(
        description="Kinds of the findings on this row. Repetitions are found among the rows that were examined."
    )
    reason: str | None = Field(default=None, description="Why the row cannot be used; null if it can.")


class LengthHistogram(ResponseModel):
    """Lengths of the pairs that were examined: the prompt with the longer answer, before truncation."""

    unit: Literal["tokens", "characters"] = Field(
        description="tokens with model_name; otherwise characters, without the text that the chat format adds."
    )
    edges: list[int] = Field(
        description="Bin i contains lengths from edges[i] to below edges[i + 1]. All bins have the same width, except "
        "that the last one is wider if a few lengths are much greater than the others."
    )
    counts: list[int] = Field(description="Number of pairs in each bin.")
    median: int
    longest: int


class PreviewResponse(ResponseModel):
    """Rows of a data set, as they are stored or as formatted text."""

    status: Literal["success"] = "success"
    samples: list[dict[str, Any]] = Field(
        description="Columns of each row; or, in a formatted preview, prompt, chosen and rejected, the row number "
        "from 1, with the format tokenizer the form that was chosen, and with model_name the tokens of each part and "
        "the numbers of truncated ones."
    )
    num_samples: int = Field(description="Number of samples in this response.")
    total_rows: int | None = Field(
        default=None, description="Number of rows in the data set; null if counting them would require reading it."
    )
    warnings: list[str] = Field(
        default_factory=list,
        description="The encoding, if the file is not UTF-8, and rows missing from the samples, each with the reason.",
    )
    findings: list[DataFinding] = Field(default_factory=list, description="Problems found in the rows_examined rows.")
    rows_examined: int = Field(default=0, description="Number of rows that were examined, from the requested row on.")
    detected_format: DetectedFormat | None = Field(default=None, description=_DETECTED)
    rows: list[RowPreview] = Field(
        default_factory=list,
        description="Formatted preview: up to 5 rows, from the requested row on, with their findings.",
    )
    next_row: int | None = Field(
        default=None,
        description="Row to request next: it follows the shown rows or, if a search found fewer, the last one that "
        "was examined. null at the end of the data set.",
    )
    lengths: LengthHistogram | None = Field(
        default=None, description="Formatted preview: lengths of the pairs in the rows_examined rows."
    )


class ColumnsResponse(ResponseModel):
    """Column names of a data set with its first rows, as a basis for `column_mapping`."""

    status: Literal["success"] = "success"
    columns: list[str]
    samples: list[dict[str, Any]]
    total_rows: int | None = Field(
        description="Number of rows in the data set; null if counting them would require a download."
    )
    suggested_mapping: dict[str, PairColumn] = Field(
        description="column_mapping suggested by the column names; empty for a detected format that needs none."
    )
    detected_format: DetectedFormat | None = Field(default=None, description=_DETECTED)
    warnings: list[str] = Field(
        default_factory=list,
        description="The encoding, if the file is not UTF-8, and columns that are not listed, and why.",
    )


class UploadResponse(ResponseModel):
    """An accepted upload."""

    status: Literal["success"] = "success"
    dataset_id: str
    filename: str
    size: int = Field(description="Size in bytes.")
    file_format: FileFormat
    total_rows: int


class UploadEntry(ResponseModel):
    """An upload in the list of uploads."""

    dataset_id: str
    filename: str
    size: int = Field(description="Size in bytes.")
    file_format: FileFormat
    total_rows: int
    created_at: str = Field(description="Time of the upload: UTC, ISO 8601 with offset.")


class UploadList(ResponseModel):
    """All uploads, newest first."""

    datasets: list[UploadEntry]


class UploadDeleted(ResponseModel):
    """Confirmation that an upload was deleted."""

    status: Literal["success"] = "success"
    message: str
    dataset_id: str
