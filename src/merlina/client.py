"""A client for a running server: one method for each endpoint, typed by the schemas."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar
from urllib.parse import urlsplit, urlunsplit

import httpx
from pydantic import BaseModel
from typing_extensions import Self
from websockets.exceptions import ConnectionClosed, InvalidHandshake
from websockets.sync.client import connect

from merlina.errors import (
    DiskFullError,
    ForbiddenError,
    InvalidRequestError,
    MerlinaError,
    NotFoundError,
    ServerError,
    TooLargeError,
)
from merlina.schemas.datasets import DatasetConfig, PreviewResponse, UploadDeleted, UploadList, UploadResponse
from merlina.schemas.jobs import (
    JobAction,
    JobCreated,
    JobHistory,
    JobLogs,
    JobMetrics,
    JobsCleared,
    JobStatus,
    JobSummary,
    Priority,
    QueueJobs,
    QueueStatus,
    StopAnswer,
)
from merlina.schemas.system import ApiInfo, Health, Stats
from merlina.schemas.training import TrainingConfig
from merlina.schemas.validation import ValidationResponse

DEFAULT_URL = "http://127.0.0.1:8000"

_Answer = TypeVar("_Answer", bound=BaseModel)
_ERRORS: dict[int, type[MerlinaError]] = {
    403: ForbiddenError,
    404: NotFoundError,
    413: TooLargeError,
    507: DiskFullError,
}
_RECONNECT_SECONDS = (0.2, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0)
_UPLOAD_SECONDS = 3600.0


class Client:
    """Speaks to the server at `url`. Every method raises an error of `merlina.errors` when it can't be done.

    `timeout` is in seconds and for one answer; an upload may take an hour.
    """

    def __init__(self, url: str = DEFAULT_URL, api_key: str | None = None, timeout: float = 200.0) -> None:
        self.url = url.rstrip("/")
        self._headers = {"X-API-Key": api_key} if api_key else {}
        self._http = httpx.Client(base_url=self.url, headers=self._headers, timeout=timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def info(self) -> ApiInfo:
        return self._get("/api", ApiInfo)

    def health(self) -> Health:
        return self._get("/health", Health)

    def stats(self) -> Stats:
        return self._get("/stats", Stats)

    def validate(self, config: TrainingConfig) -> ValidationResponse:
        return self._parse(self._send("POST", "/validate", json=_sendable(config)), ValidationResponse)

    def train(self, config: TrainingConfig, priority: Priority = "normal") -> JobCreated:
        response = self._send("POST", "/train", json=_sendable(config), params={"priority": priority})
        return self._parse(response, JobCreated)

    def status(self, job_id: str) -> JobStatus:
        return self._get(f"/status/{job_id}", JobStatus)

    def jobs(self) -> dict[str, JobSummary]:
        answer = self._send("GET", "/jobs").json()
        return {job_id: JobSummary.model_validate(summary) for job_id, summary in answer.items()}

    def history(self, status: str | None = None, limit: int = 50, offset: int = 0) -> JobHistory:
        return self._get("/jobs/history", JobHistory, status=status, limit=limit, offset=offset)

    def metrics(
        self, job_id: str, since_step: int | None = None, limit: int | None = None, max_points: int | None = None
    ) -> JobMetrics:
        path = f"/jobs/{job_id}/metrics"
        return self._get(path, JobMetrics, since_step=since_step, limit=limit, max_points=max_points)

    def config(self, job_id: str) -> dict[str, Any]:
        answer: dict[str, Any] = self._send("GET", f"/jobs/{job_id}/config").json()
        return answer

    def logs(self, job_id: str, limit: int = 1000) -> JobLogs:
        return self._get(f"/jobs/{job_id}/logs", JobLogs, limit=limit)

    def stop(self, job_id: str) -> StopAnswer:
        return self._parse(self._send("POST", f"/jobs/{job_id}/stop"), StopAnswer)

    def resume(self, job_id: str) -> JobCreated:
        return self._parse(self._send("POST", f"/jobs/{job_id}/resume"), JobCreated)

    def retry(self, job_id: str) -> JobCreated:
        return self._parse(self._send("POST", f"/jobs/{job_id}/retry"), JobCreated)

    def delete(self, job_id: str) -> JobAction:
        return self._parse(self._send("DELETE", f"/jobs/{job_id}"), JobAction)

    def clear(self) -> JobsCleared:
        return self._parse(self._send("DELETE", "/jobs"), JobsCleared)

    def queue_status(self) -> QueueStatus:
        return self._get("/queue/status", QueueStatus)

    def queue_jobs(self) -> QueueJobs:
        return self._get("/queue/jobs", QueueJobs)

    def upload(self, path: Path) -> UploadResponse:
        """Sends a data set file, reading it as it goes."""
        with path.open("rb") as file:
            files = {"file": (path.name, file)}
            return self._parse(
                self._send("POST", "/dataset/upload-file", files=files, timeout=_UPLOAD_SECONDS), UploadResponse
            )

    def uploads(self) -> UploadList:
        return self._get("/dataset/uploads", UploadList)

    def delete_upload(self, dataset_id: str) -> UploadDeleted:
        return self._parse(self._send("DELETE", f"/dataset/uploads/{dataset_id}"), UploadDeleted)

    def preview(self, config: DatasetConfig) -> PreviewResponse:
        return self._parse(self._send("POST", "/dataset/preview", json=_sendable(config)), PreviewResponse)

    def preview_formatted(self, config: DatasetConfig) -> PreviewResponse:
        return self._parse(self._send("POST", "/dataset/preview-formatted", json=_sendable(config)), PreviewResponse)

    def watch(self, job_id: str, after: int | None = None) -> Iterator[dict[str, Any]]:
        """A job's messages until its last one, over cut connections and restarts of the server, each message once.

        `after` replays from that event on. Raises ServerError where the server stays away for about a minute.
        """
        failures = 0
        while True:
            try:
                for message in self._messages(job_id, after):
                    failures = 0
                    after = message.get("seq", after)
                    yield message
                return
            except (ConnectionClosed, OSError, InvalidHandshake, EOFError) as error:
                if failures == len(_RECONNECT_SECONDS):
                    raise self._unreachable(error) from error
                time.sleep(_RECONNECT_SECONDS[failures])
                failures += 1

    def _messages(self, job_id: str, after: int | None) -> Iterator[dict[str, Any]]:
        """One connection's messages. Returns only after the last one; a cut raises ConnectionClosed."""
        scheme, host, path, *_ = urlsplit(self.url)
        query = "" if after is None else f"after={after}"
        address = urlunsplit(("wss" if scheme == "https" else "ws", host, f"{path}/ws/{job_id}", query, ""))
        with connect(address, additional_headers=self._headers, max_size=None) as websocket:
            while True:
                try:
                    yield json.loads(websocket.recv())
                except ConnectionClosed as closed:
                    code = closed.rcvd.code if closed.rcvd else None
                    if code == 1000:
                        return
                    if code == 4404:
                        raise NotFoundError(f"There is no job {job_id!r}") from closed
                    raise

    def _get(self, path: str, model: type[_Answer], **params: Any) -> _Answer:
        given = {name: value for name, value in params.items() if value is not None}
        return self._parse(self._send("GET", path, params=given), model)

    def _send(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            response = self._http.request(method, path, **options)
        except httpx.TransportError as error:
            raise self._unreachable(error) from error
        if response.is_error:
            raise _error_of(response)
        return response

    def _parse(self, response: httpx.Response, model: type[_Answer]) -> _Answer:
        try:
            return model.model_validate_json(response.content)
        except ValueError as error:
            raise ServerError(f"What answers at {self.url} is no Merlina server of this version") from error

    def _unreachable(self, error: Exception) -> ServerError:
        reason = type(error).__name__
        return ServerError(f"No Merlina server answers at {self.url} ({reason}); `merlina serve` starts one")


def _sendable(config: BaseModel) -> dict[str, Any]:
    """The configuration as JSON, with the tokens it carries."""
    content = config.model_dump(mode="json", exclude_unset=True)
    if isinstance(config, TrainingConfig):
        content |= config.secrets()
    return content


def _error_of(response: httpx.Response) -> MerlinaError:
    try:
        detail = response.json()["detail"]
    except (ValueError, KeyError, TypeError):
        return ServerError(f"The server answered {response.status_code}: {response.text[:200]}")
    if isinstance(detail, dict):
        return InvalidRequestError(detail["message"], detail["errors"], detail["warnings"])
    if response.status_code == 400:
        return InvalidRequestError(detail)
    return _ERRORS.get(response.status_code, ServerError)(detail)
