"""The source of a data set's rows: a file, an upload, an address, or a data set on the Hub (see docs/datasets.md)."""

from __future__ import annotations

import re
from pathlib import PurePath
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from merlina.domain.data_urls import DataUrl
from merlina.schemas.base import RequestModel
from merlina.schemas.parsing.validation_errors import at_field

SourceType = Literal["huggingface", "local_file", "upload", "url"]
FileFormat = Literal["json", "jsonl", "csv", "tsv", "parquet"]
Encoding = Literal["utf-8", "utf-16", "cp1252", "latin-1"]

_REPO_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*(/[A-Za-z0-9][A-Za-z0-9_.-]*)?")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9_./-]*")
_DATASET_ID = re.compile(r"upload_[0-9]{8}_[0-9]{6}_[0-9a-f]{8}")
_NEEDED: dict[SourceType, str] = {
    "huggingface": "repo_id",
    "local_file": "file_path",
    "upload": "dataset_id",
    "url": "url",
}


_FilePattern = Annotated[str, Field(min_length=1, max_length=1000)]


def _is_path_in_repository(value: Any) -> bool:
    """Return false for addresses and for paths of the server's disk, which `datasets` would read just as well."""
    if not isinstance(value, str) or not 0 < len(value) <= 1000:
        return False
    return not (value.startswith(("/", "~")) or ".." in value.split("/") or ":" in value or "\\" in value)


class DatasetSource(RequestModel):
    """The location of the rows. `source_type` determines which of the other fields is required."""

    source_type: SourceType = Field(
        description="Where the rows are: huggingface (the Hub) requires repo_id, local_file (a file on the server) "
        "requires file_path, upload requires dataset_id, url (a file at an address) requires url."
    )
    repo_id: str | None = Field(
        default=None,
        max_length=200,
        description="huggingface: id of the data set, `org/name`.",
        json_schema_extra={"pattern": f"^{_REPO_ID.pattern}$"},
    )
    config_name: str | None = Field(
        default=None,
        min_length=1,
        max_length=200,
        description="huggingface: configuration (subset) to read. null: the default one; a data set with several and "
        "no default needs it.",
    )
    revision: str | None = Field(
        default=None,
        max_length=200,
        description="huggingface: branch, tag or commit id to read. null: the newest commit of the main branch.",
        json_schema_extra={"pattern": f"^{_REVISION.pattern}$"},
    )
    data_files: _FilePattern | Annotated[list[_FilePattern], Field(min_length=1, max_length=1000)] | None = Field(
        default=None,
        description="huggingface: files of the repository to read, as a path or pattern such as `data/*.parquet`, or a "
        "list of them; they form the split train. null: all files of the configuration.",
    )
    split: str = Field(default="train", min_length=1, description="huggingface: split to read.")
    file_path: str | None = Field(
        default=None, min_length=1, description="local_file: path of the file on the server, inside ALLOWED_PATHS."
    )
    url: str | None = Field(
        default=None,
        description="url: address of the file, https://, s3:// or gs://, which ALLOWED_DATA_URLS must allow. It may "
        "contain no user name, password, query string or fragment.",
    )
    file_format: FileFormat | None = Field(
        default=None, description="Format of the file. null: detected from its name, else from its content."
    )
    encoding: Encoding | None = Field(
        default=None,
        description="Encoding of the file, unless it is Parquet. null: detected from its first MiB; anything but UTF-8 "
        "is reported.",
    )
    dataset_id: str | None = Field(
        default=None,
        description="upload: id that the server returned for the upload.",
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
            raise ValueError(f"{value[:100]!r} is not a Hub id; use org/name, with letters, digits, '.', '_' and '-'")
        return value

    @field_validator("revision")
    @classmethod
    def _is_a_revision(cls, value: str | None) -> str | None:
        if value is not None and (not _REVISION.fullmatch(value) or ".." in value):
            raise ValueError(f"{value[:100]!r} is not a revision; use the name of a branch or a tag, or a commit id")
        return value

    @field_validator("data_files", mode="before")
    @classmethod
    def _are_in_the_repository(cls, value: Any) -> Any:
        patterns = value if isinstance(value, list) else [value]
        if value is not None and not (0 < len(patterns) <= 1000 and all(map(_is_path_in_repository, patterns))):
            raise ValueError("should be a path inside the repository, such as data/*.parquet, or a list of up to 1,000")
        return value

    @field_validator("dataset_id")
    @classmethod
    def _is_an_upload(cls, value: str | None) -> str | None:
        if value is not None and not _DATASET_ID.fullmatch(value):
            raise ValueError(f"{value[:100]!r} is not an upload id, such as upload_20260101_120000_a1b2c3d4")
        return value

    @field_validator("url")
    @classmethod
    def _is_an_address_of_a_file(cls, value: str | None) -> str | None:
        if value is None:
            return None
        url = DataUrl.parse(value)
        if not url.file_name or url.path.endswith("/"):
            raise ValueError("names no file, such as https://data.example.com/pairs.jsonl")
        return str(url)

    @property
    def name(self) -> str:
        """The Hub id with the configuration, the name of the file, the address, or the id of the upload."""
        if self.source_type == "huggingface":
            return f"{self.repo_id}/{self.config_name}" if self.config_name else str(self.repo_id)
        if self.source_type == "local_file":
            return PurePath(str(self.file_path)).name
        return str(self.url if self.source_type == "url" else self.dataset_id)

    @model_validator(mode="after")
    def _has_required_field(self) -> Self:
        needed = _NEEDED[self.source_type]
        if getattr(self, needed) is None:
            raise at_field(needed, f"required by source_type {self.source_type!r}")
        if self.data_files is not None and "/" not in str(self.repo_id):
            # The library reads a bare name such as `csv` as a file format, and data_files as files on this machine.
            raise at_field("repo_id", f"must have the form org/name with data_files, which {self.repo_id!r} has not")
        return self
