"""General answers: what the server is and how it fares (API document, "General")."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, SecretStr

from merlina.schemas.base import RequestModel, ResponseModel
from merlina.schemas.jobs import QueueStats


class ErrorDetails(ResponseModel):
    """What is wrong with a request, where there is more to tell than one line."""

    message: str
    errors: list[str]
    warnings: list[str]
    can_force: bool = Field(
        default=False, description="the same request with `force` is carried out in spite of the conflict"
    )


class ErrorResponse(ResponseModel):
    """Every answer of 400 or more."""

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
    commit: str | None = Field(default=None, description="of the code that runs; null where it is not known")
    uptime_seconds: float


class Disk(ResponseModel):
    """A disk that the server writes to."""

    name: Literal["data", "models"]
    path: str
    total_mb: int
    free_mb: int


class Machine(ResponseModel):
    """`GET /system`; sizes in MiB."""

    memory_total_mb: int
    memory_available_mb: int = Field(description="what a new process could use without swapping")
    disks: list[Disk]
    versions: dict[str, str] = Field(description="of Python, Merlina and the libraries that train")


class DatabaseStats(ResponseModel):
    """The database in three numbers."""

    total_jobs: int
    total_metrics: int
    db_size_mb: float


class WebSocketStats(ResponseModel):
    """The WebSocket in one number."""

    total_connections: int


class LoginRequest(RequestModel):
    """`POST /login`."""

    api_key: SecretStr = Field(max_length=10_000)


class SessionState(ResponseModel):
    """Whether this server asks for an API key, and whether the asker may go on."""

    login_required: bool
    logged_in: bool


class Stats(ResponseModel):
    """`GET /stats`."""

    database: DatabaseStats
    websockets: WebSocketStats
    queue: QueueStats
