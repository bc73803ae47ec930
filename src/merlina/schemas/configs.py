"""Request and response models of saved configurations (docs/api.md, "Saved configurations")."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator

from merlina.schemas.base import RequestModel, ResponseModel
from merlina.schemas.parsing.stored_config import PartialConfig
from merlina.schemas.training.publishing import SECRET_FIELDS

CONFIG_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
RESERVED_NAMES = ("list", "save", "import", "export")

Tag = Annotated[str, StringConstraints(min_length=1, max_length=100)]


def check_name(value: str) -> str:
    """Return the name of a saved configuration. Raises ValueError if it is not valid."""
    if not CONFIG_NAME.fullmatch(value):
        raise ValueError(
            f"{value[:100]!r} is not a valid name: up to 100 letters, digits, '.', '_' and '-', a letter or digit first"
        )
    if value in RESERVED_NAMES:
        raise ValueError(f"{value!r} is reserved by the API; choose another name")
    return value


def without_tokens(config: PartialConfig) -> PartialConfig:
    return {name: value for name, value in config.items() if name not in SECRET_FIELDS}


class SaveConfigRequest(RequestModel):
    """`POST /configs/save`. Any part of a TrainingConfig can be saved; tokens never are."""

    name: str = Field(
        description="Letters, digits, '.', '_' and '-'; replacing a configuration keeps its created_at.",
        json_schema_extra={"pattern": f"^{CONFIG_NAME.pattern}$"},
    )
    config: PartialConfig = Field(description="A TrainingConfig, or part of one.")
    description: str | None = Field(default=None, max_length=10_000)
    tags: list[Tag] | None = Field(default=None, max_length=100)

    @field_validator("name")
    @classmethod
    def _is_valid_name(cls, value: str) -> str:
        return check_name(value)


class ExportConfigRequest(RequestModel):
    """`POST /configs/export`."""

    name: str
    output_path: str = Field(
        min_length=1, description="Path of the file to write, under ALLOWED_PATHS; must end in .json."
    )


class ImportConfigRequest(RequestModel):
    """`POST /configs/import`."""

    filepath: str = Field(
        min_length=1, description="Path of the file to read, under ALLOWED_PATHS: an exported or a plain configuration."
    )
    name: str | None = Field(
        default=None,
        description="Defaults to the name in the file, otherwise to the file's name.",
        json_schema_extra={"pattern": f"^{CONFIG_NAME.pattern}$"},
    )

    @field_validator("name")
    @classmethod
    def _is_valid_name(cls, value: str | None) -> str | None:
        return value if value is None else check_name(value)


class SavedConfig(BaseModel):
    """Contents of a configuration's file. Times are UTC, ISO 8601 with offset."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    name: str
    description: str = ""
    tags: list[str] = Field(default_factory=list)
    created_at: str
    updated_at: str
    config: PartialConfig


class ConfigEntry(ResponseModel):
    """One configuration in the list."""

    name: str
    filename: str = Field(description="Name of the file in DATA_DIR/configs.")
    description: str
    tags: list[str]
    created_at: str
    updated_at: str
    modified_at: str = Field(
        description="Modification time of the file; differs from updated_at if the file was edited."
    )


class ConfigList(ResponseModel):
    """All configurations, or those with a tag, by name."""

    status: Literal["success"] = "success"
    configs: list[ConfigEntry]
    count: int


class ConfigResponse(ResponseModel):
    """One configuration: its fields or, with `include_metadata`, also name, description, tags and times."""

    status: Literal["success"] = "success"
    config: dict[str, Any]


class ConfigWritten(ResponseModel):
    """A configuration was written to a file."""

    status: Literal["success"] = "success"
    message: str
    filepath: str


class ConfigDeleted(ResponseModel):
    """A configuration was deleted."""

    status: Literal["success"] = "success"
    message: str
