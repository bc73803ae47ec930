"""Response models of general endpoints: information about the server, its state and errors (docs/api.md, "General")."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, SecretStr

from merlina.errors import Finding
from merlina.schemas.base import RequestModel, ResponseModel
from merlina.schemas.jobs import QueueStats


class ErrorDetails(ResponseModel):
    """The details of an error that has findings or can be overridden with `force`."""

    message: str
    errors: list[str] = Field(description="Findings of severity error as text: `field: message`.")
    warnings: list[str] = Field(description="Findings of severity warning as text: `field: message`.")
    findings: list[Finding] = Field(default_factory=list, description="Errors and warnings by field.")
    can_force: bool = Field(default=False, description="The same request with `force` overrides the conflict.")


class ErrorResponse(ResponseModel):
    """The response of every request that fails, with a status of 400 or higher."""

    detail: str | ErrorDetails


class ApiInfo(ResponseModel):
    """`GET /api`."""

    name: str
    version: str
    description: str
    endpoints: dict[str, str]


class Health(ResponseModel):
    """`GET /health`."""

    status: Literal["ok"] = "ok"
    version: str
    commit: str | None = Field(default=None, description="Commit of the running code; null if unknown.")
    uptime_seconds: float


class Disk(ResponseModel):
    """A disk that the server writes to; sizes in MiB."""

    name: Literal["data", "models"]
    path: str
    total_mb: int
    free_mb: int


class Machine(ResponseModel):
    """`GET /system`; sizes in MiB."""

    memory_total_mb: int
    memory_available_mb: int = Field(description="Memory that a new process could use without swapping.")
    disks: list[Disk]
    versions: dict[str, str] = Field(description="Versions of Python, Merlina and the training libraries.")


class DatabaseStats(ResponseModel):
    """Counts and size of the database."""

    total_jobs: int
    total_metrics: int
    db_size_mb: float = Field(description="MiB.")


class WebSocketStats(ResponseModel):
    """Counts of WebSocket connections."""

    total_connections: int


class LoginRequest(RequestModel):
    """`POST /login`."""

    api_key: SecretStr = Field(max_length=10_000)


class SessionState(ResponseModel):
    """Whether this server requires an API key, and whether the request is authorized."""

    login_required: bool
    logged_in: bool


class Stats(ResponseModel):
    """`GET /stats`."""

    database: DatabaseStats
    websockets: WebSocketStats
    queue: QueueStats
