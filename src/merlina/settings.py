"""The server's settings: read once from the environment and `.env`, then passed down."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

_DATABASE_FILE = "merlina.db"


def split_list(value: Any) -> Any:
    """`"a, b"`, `'["a", "b"]'` or a list → a list of strings. Raises ValueError on broken JSON."""
    if not isinstance(value, str):
        return value
    text = value.strip()
    if text.startswith("["):
        try:
            return json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError("begins with [ but is no JSON list of texts") from error
    return [part.strip() for part in text.split(",") if part.strip()]


class Settings(BaseSettings):
    """Everything a server can be told, each by the environment variable of the same name in capitals."""

    model_config = SettingsConfigDict(env_file=".env", env_file_encoding="utf-8", extra="ignore", frozen=True)

    host: str = Field(default="127.0.0.1", description="address to listen on")
    port: int = Field(default=8000, ge=0, le=65535, description="port to listen on; 0 takes a free one")
    domain: str = Field(
        default="", description="public address, with its path if it has one, when a proxy stands before the server"
    )
    cors_origins: Annotated[list[str], NoDecode] = Field(
        default_factory=list, description="origins whose pages may call the API: comma list, JSON list or *"
    )
    api_key: SecretStr | None = Field(default=None, description="where set, every request must carry it")

    data_dir: Path = Field(default=Path("data"), description="database, uploads and run folders")
    models_dir: Path = Field(default=Path("models"), description="finished models")
    database_url: str = Field(default="", description="SQLAlchemy URL; empty: SQLite in the data folder")
    allowed_paths: Annotated[list[Path], NoDecode] = Field(
        default_factory=list,
        description="folders a request may read files from; empty: the data folder and the one started in",
    )
    max_upload_size_mb: int = Field(default=500, ge=1, description="largest upload, in MiB")
    max_row_size_mb: int = Field(
        default=16, ge=1, le=1024, description="largest row of a data set, in MiB; raise it for rows of longer texts"
    )

    max_concurrent_jobs: int = Field(default=1, ge=1, description="jobs that may run at the same time")
    share_gpus: bool = Field(default=False, description="let several jobs run on one GPU")
    stop_grace_seconds: float = Field(
        default=180.0, ge=0, description="time a stopped run has to save itself, in seconds"
    )
    helper_idle_seconds: float = Field(
        default=300.0, gt=0, description="time after which idle helpers are let go, in seconds"
    )
    chat_idle_seconds: float = Field(
        default=300.0, gt=0, description="unload an idle chat model after this many seconds"
    )

    hf_token: SecretStr | None = Field(default=None, description="Hugging Face token for jobs that bring none")
    wandb_api_key: SecretStr | None = Field(default=None, description="Weights & Biases key for jobs that bring none")
    trust_remote_code: bool = Field(
        default=False, description="let models run code of their own: only for models you trust"
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        default="INFO", description="how much the server logs"
    )

    @field_validator("cors_origins", "allowed_paths", mode="before")
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
            raise ValueError("must be plain ASCII: no request could carry anything else")
        return value

    @field_validator("domain")
    @classmethod
    def _is_an_address(cls, value: str) -> str:
        try:
            urlsplit(value if "//" in value else f"//{value}")
        except ValueError as error:
            raise ValueError(f"is no address: {error}") from error
        return value

    @field_validator("data_dir", "models_dir", mode="after")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        return value.expanduser().absolute()

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
        """Held by the one server that uses the data folder."""
        return self.data_dir / "server.lock"

    @property
    def logged_out_file(self) -> Path:
        """Sessions of the page that were logged out before they expired."""
        return self.data_dir / "logged_out"

    @property
    def private_paths(self) -> tuple[Path, ...]:
        """What is the server's own, though it lies in the data folder."""
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
