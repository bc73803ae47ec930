"""The server's settings, read once from the environment and `.env`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from merlina.domain.data_urls import AllowedUrls

_DATABASE_FILE = "merlina.db"


def split_list(value: Any) -> Any:
    """Return a list from `"a, b"`, `'["a", "b"]'` or a list. Raises ValueError if the JSON is not valid."""
    if not isinstance(value, str):
        return value
    text = value.strip()
    if text.startswith("["):
        try:
            return json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError("begins with [ but is not a JSON list of strings") from error
    return [part.strip() for part in text.split(",") if part.strip()]


class Settings(BaseSettings):
    """All settings of a server; the environment variables have the same names in capitals."""

    model_config = SettingsConfigDict(env_file=".env", env_file_encoding="utf-8", extra="ignore", frozen=True)

    host: str = Field(default="127.0.0.1", description="Address to listen on.")
    port: int = Field(default=8000, ge=0, le=65535, description="Port to listen on; 0 selects a free one.")
    domain: str = Field(
        default="", description="Public address of the server behind a proxy, including its path, if any."
    )
    cors_origins: Annotated[list[str], NoDecode] = Field(
        default_factory=list, description="Origins of pages that may call the API: comma-separated or JSON list, or *."
    )
    api_key: SecretStr | None = Field(
        default=None, description="API key that requests need, except for the login and health checks; empty: none."
    )

    data_dir: Path = Field(default=Path("data"), description="Folder for the database, uploads and run folders.")
    models_dir: Path = Field(default=Path("models"), description="Folder for finished models.")
    database_url: str = Field(
        default="", description="SQLAlchemy URL of the database; empty: SQLite in the data folder."
    )
    allowed_paths: Annotated[list[Path], NoDecode] = Field(
        default_factory=list,
        description="Folders in which requests may access files; empty: the data folder and the working directory of "
        "the server.",
    )
    allowed_data_urls: Annotated[list[str], NoDecode] = Field(
        default_factory=list,
        description="Addresses from which requests may read data sets, each a scheme with a host or bucket, and "
        "possibly a path: https://data.example.com, s3://my-bucket, gs://team-bucket/folder. Empty: none.",
    )
    max_upload_size_mb: int = Field(default=500, ge=1, description="Maximum size of an upload, in MiB.")
    max_row_size_mb: int = Field(
        default=16,
        ge=1,
        le=1024,
        description="Maximum size of a row of a data set, in MiB. Raise it for longer texts; memory use grows with it.",
    )

    max_concurrent_jobs: int = Field(default=1, ge=1, description="Maximum number of jobs that run at the same time.")
    share_gpus: bool = Field(default=False, description="Allow several jobs to run on one GPU.")
    stop_grace_seconds: float = Field(
        default=180.0, ge=0, description="Seconds that a stopped run may take to save its model before it is killed."
    )
    helper_idle_seconds: float = Field(
        default=300.0, gt=0, description="End idle helper processes after this many seconds."
    )
    chat_idle_seconds: float = Field(
        default=300.0, gt=0, description="Unload an idle chat model after this many seconds."
    )
    spare_processes: bool = Field(
        default=True,
        description="Keep a process that imports torch in advance, so that runs, checks and chat start some seconds "
        "sooner. Turn it off on a machine with little memory.",
    )

    hf_token: SecretStr | None = Field(
        default=None, description="Hugging Face token for jobs that have none of their own."
    )
    wandb_api_key: SecretStr | None = Field(
        default=None, description="Weights & Biases key for jobs that have none of their own."
    )
    trust_remote_code: bool = Field(
        default=False, description="Allow base models to run their own code. Only for models that you trust."
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        default="INFO", description="Minimum level of the server's log messages."
    )

    @field_validator("cors_origins", "allowed_paths", "allowed_data_urls", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return split_list(value)

    @field_validator("log_level", mode="before")
    @classmethod
    def _upper(cls, value: Any) -> Any:
        return value.upper() if isinstance(value, str) else value

    @field_validator("api_key", "hf_token", "wandb_api_key", mode="before")
    @classmethod
    def _blank_is_none(cls, value: Any) -> Any:
        return (value.strip() or None) if isinstance(value, str) else value

    @field_validator("api_key")
    @classmethod
    def _fits_a_header(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not (value.get_secret_value().isascii() and value.get_secret_value().isprintable()):
            raise ValueError("must be printable ASCII, since it is sent in an HTTP header")
        return value

    @field_validator("domain")
    @classmethod
    def _is_an_address(cls, value: str) -> str:
        try:
            urlsplit(value if "//" in value else f"//{value}")
        except ValueError as error:
            raise ValueError(f"is not a valid address: {error}") from error
        return value

    @field_validator("allowed_data_urls")
    @classmethod
    def _are_addresses(cls, value: list[str]) -> list[str]:
        return list(AllowedUrls.of(value).entries)

    @field_validator("data_dir", "models_dir", mode="after")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        return value.expanduser().absolute()

    def hub_token(self, given: SecretStr | None = None) -> str | None:
        """Return the Hugging Face token that a request brings, otherwise the server's."""
        token = given or self.hf_token
        return token.get_secret_value() if token else None

    @property
    def sqlalchemy_url(self) -> str:
        return self.database_url or f"sqlite:///{self.data_dir / _DATABASE_FILE}"

    @property
    def helper_log(self) -> Path:
        return self.data_dir / "helper.log"

    @property
    def chat_log(self) -> Path:
        return self.data_dir / "chat.log"

    @property
    def lock_file(self) -> Path:
        """The lock that the server holds while it uses the data folder."""
        return self.data_dir / "server.lock"

    @property
    def logged_out_file(self) -> Path:
        """The sessions that were logged out before they expired."""
        return self.data_dir / "logged_out"

    @property
    def private_paths(self) -> tuple[Path, ...]:
        """Files and folders of the data folder that requests may not access."""
        database = [self.data_dir / f"{_DATABASE_FILE}{suffix}" for suffix in ("", "-wal", "-shm", "-journal")]
        files = (self.helper_log, self.chat_log, self.lock_file, self.logged_out_file)
        return tuple(path.resolve() for path in (self.runs_dir, *files, *database))

    @property
    def runs_dir(self) -> Path:
        return self.data_dir / "runs"

    @property
    def uploads_dir(self) -> Path:
        return self.data_dir / "uploads"

    @property
    def configs_dir(self) -> Path:
        return self.data_dir / "configs"

    @property
    def allowed_roots(self) -> tuple[Path, ...]:
        roots = self.allowed_paths or [self.data_dir, Path.cwd()]
        return tuple(root.expanduser().resolve() for root in roots)

    @property
    def allowed_urls(self) -> AllowedUrls:
        return AllowedUrls(tuple(self.allowed_data_urls))
