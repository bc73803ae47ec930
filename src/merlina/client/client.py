"""The blocking client."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
from pydantic import RootModel
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from merlina.client.connection import websocket_proxy
from merlina.client.live import CONNECTION_ERRORS, RECONNECT_SECONDS, address, check_end, parse_message, refusal
from merlina.client.requests import ServerConnection, not_none, segment
from merlina.client.responses import AnswerEvent, answer_event, error_of, parse, sendable
from merlina.errors import NotFoundError
from merlina.schemas.chat import AnswerRequest, ChatState, Comparison, ComparisonList, ComparisonRequest, Verdict
from merlina.schemas.configs import (
    ConfigDeleted,
    ConfigList,
    ConfigResponse,
    ConfigWritten,
    SavedConfig,
)
from merlina.schemas.datasets.config import DatasetConfig, RowFilter
from merlina.schemas.datasets.responses import (
    ColumnsResponse,
    PreviewResponse,
    UploadDeleted,
    UploadList,
    UploadResponse,
)
from merlina.schemas.hardware import AvailableGpus, GpuList, GpuResponse, RecommendedGpu
from merlina.schemas.jobs import (
    JobAction,
    JobCreated,
    JobHistory,
    JobLogs,
    JobMetrics,
    JobsCleared,
    JobStatus,
    JobSummary,
    JobTimeline,
    LoadingCode,
    Priority,
    QueueJobs,
    QueueStatus,
    StopResponse,
)
from merlina.schemas.messages import JobMessage
from merlina.schemas.models import CachedModels, PreloadResponse
from merlina.schemas.system import ApiInfo, Health, Machine, Stats
from merlina.schemas.training.config import TrainingConfig
from merlina.schemas.validation import ValidationResponse

_Jobs = RootModel[dict[str, JobSummary]]
_AnyObject = RootModel[dict[str, Any]]

_UPLOAD_SECONDS = 3600.0
# Loading a large model from a slow disk or processing a long prompt on a CPU may take this long.
LOAD_SECONDS = 1800.0


class Client(ServerConnection):
    """A client of the server at `url`. Every method raises errors of `merlina.errors`.

    `url` and `api_key` default to the environment variables MERLINA_URL and MERLINA_API_KEY. Requests to a server on
    this machine never use a proxy. `timeout` applies to each request, in seconds; None waits forever. An upload may
    take an hour. If a connection fails, GET requests are repeated up to `retries` times; all others are sent once.
    """

    def info(self) -> ApiInfo:
        """Return name, version and endpoints of the API."""
        return self._get("/api", ApiInfo)

    def health(self) -> Health:
        """Return the version of the running server and its uptime."""
        return self._get("/health", Health)

    def stats(self) -> Stats:
        """Return counts of jobs, metrics and connections, and the state of the queue."""
        return self._get("/stats", Stats)

    def system(self) -> Machine:
        """Return memory, disks and versions of the server's machine."""
        return self._get("/system", Machine)

    def validate(self, config: TrainingConfig) -> ValidationResponse:
        """Check a configuration against the server's machine, the model and the data, without a run."""
        return parse(self._send("POST", "/validate", json=sendable(config)), ValidationResponse)

    def train(self, config: TrainingConfig, priority: Priority = "normal", *, preemptible: bool = False) -> JobCreated:
        """Queue a job. Raises InvalidRequestError, with its findings, if the run could not succeed."""
        params = {"priority": priority, "preemptible": preemptible}
        response = self._send("POST", "/train", json=sendable(config), params=params)
        return parse(response, JobCreated)

    def status(self, job_id: str) -> JobStatus:
        """Return state and progress of a job."""
        return self._get(f"/status/{segment(job_id)}", JobStatus)

    def jobs(self) -> dict[str, JobSummary]:
        """Return a summary of every job by id, newest first."""
        return parse(self._send("GET", "/jobs"), _Jobs).root

    def history(self, status: str | None = None, limit: int = 50, offset: int = 0) -> JobHistory:
        """Return one page of jobs, newest first, of all states or of one."""
        return self._get("/jobs/history", JobHistory, status=status, limit=limit, offset=offset)

    def metrics(
        self,
        job_id: str,
        since_step: int | None = None,
        limit: int | None = None,
        max_points: int | None = None,
        until_step: int | None = None,
    ) -> JobMetrics:
        """Return the metrics of a job in step order, of all steps or of a range, at most `max_points` rows."""
        path = f"/jobs/{segment(job_id)}/metrics"
        params = {"since_step": since_step, "until_step": until_step, "limit": limit, "max_points": max_points}
        return self._get(path, JobMetrics, **params)

    def config(self, job_id: str) -> dict[str, Any]:
        """Return the configuration of a job, without tokens."""
        return parse(self._send("GET", f"/jobs/{segment(job_id)}/config"), _AnyObject).root

    def logs(self, job_id: str, limit: int = 1000) -> JobLogs:
        """Return the last lines of a run's log, oldest first."""
        return self._get(f"/jobs/{segment(job_id)}/logs", JobLogs, limit=limit)

    def loading_code(self, job_id: str) -> LoadingCode:
        """Return Python code that loads the model of a finished job."""
        return self._get(f"/jobs/{segment(job_id)}/loading-code", LoadingCode)

    def timeline(self, job_id: str) -> JobTimeline:
        """Return the states of a job in the order in which it entered them."""
        return self._get(f"/jobs/{segment(job_id)}/timeline", JobTimeline)

    def stop(self, job_id: str) -> StopResponse:
        """Cancel a waiting job, or request a running one to stop and save its model."""
        return parse(self._send("POST", f"/jobs/{segment(job_id)}/stop"), StopResponse)

    def pause(self, job_id: str) -> JobAction:
        """Pause a queued job at once, or request a running one to write a checkpoint and end."""
        return parse(self._send("POST", f"/jobs/{segment(job_id)}/pause"), JobAction)

    def resume(self, job_id: str, *, force: bool = False) -> JobCreated:
        """Continue from the newest complete checkpoint; with `force`, start over at step 1."""
        params = {"force": "true"} if force else None
        return parse(self._send("POST", f"/jobs/{segment(job_id)}/resume", params=params), JobCreated)

    def retry(self, job_id: str) -> JobCreated:
        """Queue a new job with the configuration of an earlier one."""
        return parse(self._send("POST", f"/jobs/{segment(job_id)}/retry"), JobCreated)

    def delete(self, job_id: str) -> JobAction:
        """Delete a job; a running one is stopped first. Its model is kept."""
        return parse(self._send("DELETE", f"/jobs/{segment(job_id)}"), JobAction)

    def clear(self) -> JobsCleared:
        """Delete all jobs. Their models are kept."""
        return parse(self._send("DELETE", "/jobs"), JobsCleared)

    def queue_status(self) -> QueueStatus:
        """Return queued and running jobs, with statistics of the queue."""
        return self._get("/queue/status", QueueStatus)

    def queue_jobs(self) -> QueueJobs:
        """Return queued and running jobs."""
        return self._get("/queue/jobs", QueueJobs)

    def upload(self, path: Path) -> UploadResponse:
        """Upload a data set file as a stream. Raises NotFoundError if it does not exist."""
        if not path.is_file():
            raise NotFoundError(f"There is no file {str(path)!r}")
        with path.open("rb") as file:
            files = {"file": (path.name, file)}
            return parse(
                self._send("POST", "/dataset/upload-file", files=files, timeout=_UPLOAD_SECONDS), UploadResponse
            )

    def uploads(self) -> UploadList:
        """Return all uploads, newest first."""
        return self._get("/dataset/uploads", UploadList)

    def delete_upload(self, dataset_id: str, *, force: bool = False) -> UploadDeleted:
        """Delete an upload. Raises OverridableError without `force` if a job needs it to run or to resume."""
        params = {"force": True} if force else None
        return parse(self._send("DELETE", f"/dataset/uploads/{segment(dataset_id)}", params=params), UploadDeleted)

    def preview(self, config: DatasetConfig, hf_token: str | None = None, *, row: int = 1) -> PreviewResponse:
        """Return up to 10 rows of a data set from number `row` on, without changes."""
        body = sendable(config) | not_none(hf_token=hf_token)
        return parse(self._send("POST", "/dataset/preview", json=body, params={"row": row}), PreviewResponse)

    def preview_formatted(
        self,
        config: DatasetConfig,
        max_length: int | None = None,
        max_prompt_length: int | None = None,
        hf_token: str | None = None,
        *,
        row: int = 1,
        only: RowFilter | None = None,
    ) -> PreviewResponse:
        """Return up to 5 pairs from number `row` on as training uses them, or from rows with the findings of `only`.

        With `model_name`, the pairs are also tokens, truncated to the lengths. A search for findings ends after 3 s;
        continue it from `next_row`.
        """
        body = sendable(config) | not_none(hf_token=hf_token)
        query = not_none(max_length=max_length, max_prompt_length=max_prompt_length, row=row, only=only)
        response = self._send("POST", "/dataset/preview-formatted", json=body, params=query)
        return parse(response, PreviewResponse)

    def columns(self, config: DatasetConfig, hf_token: str | None = None) -> ColumnsResponse:
        """Return the columns and first rows of a data set, and a suggested `column_mapping`."""
        body = sendable(config) | not_none(hf_token=hf_token)
        return parse(self._send("POST", "/dataset/columns", json=body), ColumnsResponse)

    def gpus(self) -> GpuList:
        """Return all GPUs of the server's machine."""
        return self._get("/gpu/list", GpuList)

    def gpu(self, index: int) -> GpuResponse:
        """Return one GPU."""
        return self._get(f"/gpu/{index}", GpuResponse)

    def available_gpus(self, min_free_memory_mb: int = 4000) -> AvailableGpus:
        """Return the indices of the GPUs that have at least `min_free_memory_mb` MiB of free memory."""
        return self._get("/gpu/available", AvailableGpus, min_free_memory_mb=min_free_memory_mb)

    def recommended_gpu(self) -> RecommendedGpu:
        """Return the GPU with the most free memory."""
        return self._get("/gpu/recommended", RecommendedGpu)

    def save_config(
        self, name: str, config: dict[str, Any], description: str | None = None, tags: list[str] | None = None
    ) -> ConfigWritten:
        """Save a configuration or part of one, without tokens."""
        request = {"name": name, "config": config, "description": description, "tags": tags}
        return parse(self._send("POST", "/configs/save", json=request), ConfigWritten)

    def saved_configs(self, tag: str | None = None) -> ConfigList:
        """Return all saved configurations, or those with a tag, by name."""
        return self._get("/configs/list", ConfigList, tag=tag)

    def saved_config(self, name: str) -> SavedConfig:
        """Return a saved configuration with its name, description, tags and times."""
        response = self._get(f"/configs/{segment(name)}", ConfigResponse, include_metadata=True)
        return SavedConfig.model_validate(response.config)

    def delete_config(self, name: str) -> ConfigDeleted:
        """Delete a saved configuration."""
        return parse(self._send("DELETE", f"/configs/{segment(name)}"), ConfigDeleted)

    def export_config(self, name: str, output_path: str) -> ConfigWritten:
        """Write a saved configuration to a file on the server's machine."""
        request = {"name": name, "output_path": output_path}
        return parse(self._send("POST", "/configs/export", json=request), ConfigWritten)

    def import_config(self, filepath: str, name: str | None = None) -> ConfigWritten:
        """Save a configuration from a file on the server's machine."""
        request = not_none(filepath=filepath, name=name)
        return parse(self._send("POST", "/configs/import", json=request), ConfigWritten)

    def preload_model(self, model_name: str, hf_token: str | None = None) -> PreloadResponse:
        """Load the tokenizer of a model, which downloads it if necessary."""
        request = not_none(model_name=model_name, hf_token=hf_token)
        return parse(self._send("POST", "/model/preload", json=request), PreloadResponse)

    def cached_models(self) -> CachedModels:
        """Return the models with a tokenizer on the server's machine."""
        return self._get("/model/cached", CachedModels)

    def chat_state(self) -> ChatState:
        """Return which model is loaded for chat."""
        return self._get("/chat", ChatState)

    def load_chat_model(self, job_id: str, *, with_base: bool = True, force: bool = False) -> ChatState:
        """Load a job's model, which may take minutes. Raises InsufficientMemoryError."""
        request = {"job_id": job_id, "with_base": with_base, "force": force}
        return parse(self._send("POST", "/chat/load", json=request, timeout=LOAD_SECONDS), ChatState)

    def unload_chat_model(self) -> ChatState:
        """Unload the model."""
        return parse(self._send("DELETE", "/chat"), ChatState)

    def answer(self, request: AnswerRequest) -> Iterator[AnswerEvent]:
        """Yield the answer of one side as it is generated; closing the iterator cancels it.

        Raises ServerError if the answer fails.
        """
        body = sendable(request)
        try:
            with self._http.stream("POST", "/chat/answer", json=body, timeout=LOAD_SECONDS) as response:
                if response.is_error:
                    response.read()
                    raise error_of(response)
                for line in response.iter_lines():
                    yield answer_event(line)
        except httpx.TransportError as error:
            raise self._unreachable(error) from error

    def compare(self, request: ComparisonRequest) -> Comparison:
        """Return the answers of both sides in hidden order; the server generates them unless the request has them."""
        response = self._send("POST", "/chat/comparisons", json=sendable(request), timeout=LOAD_SECONDS)
        return parse(response, Comparison)

    def vote(self, comparison_id: str, better: Verdict) -> Comparison:
        """Record the vote, which is final, and return the comparison with both sides revealed."""
        path = f"/chat/comparisons/{segment(comparison_id)}/vote"
        return parse(self._send("POST", path, json={"better": better}), Comparison)

    def comparisons(self, job_id: str, limit: int = 100, offset: int = 0) -> ComparisonList:
        """Return one page of a job's comparisons, newest first, with the tally of all."""
        return self._get("/chat/comparisons", ComparisonList, job_id=job_id, limit=limit, offset=offset)

    def save_votes(self, job_id: str) -> UploadResponse:
        """Save a job's votes as an uploaded preference data set."""
        return parse(self._send("POST", "/chat/comparisons/dataset", params={"job_id": job_id}), UploadResponse)

    def watch(self, job_id: str, after: int | None = None) -> Iterator[JobMessage]:
        """Yield a job's messages up to its last one, reconnecting after lost connections and restarts of the server.

        Each `metrics` message comes once; the snapshot at the beginning of a connection may be repeated. `after`
        replays the events after that number. Raises ServerError if the server is unreachable for about a minute.
        """
        failures = 0
        while True:
            try:
                for message in self._messages(job_id, after):
                    failures = 0
                    after = message.seq
                    yield message
                return
            except CONNECTION_ERRORS as error:
                if (refused := refusal(error)) is not None:
                    raise refused from error
                if failures == len(RECONNECT_SECONDS):
                    raise self._unreachable(error) from error
                time.sleep(RECONNECT_SECONDS[failures])
                failures += 1

    def wait(self, job_id: str, on_message: Callable[[JobMessage], object] | None = None) -> JobStatus:
        """Return the job's status once it has ended. `on_message` is called with each message until then."""
        for message in self.watch(job_id):
            if on_message is not None:
                on_message(message)
        return self.status(job_id)

    def _messages(self, job_id: str, after: int | None) -> Iterator[JobMessage]:
        """Yield one connection's messages up to the last one. Raises ConnectionClosed if the connection is lost."""
        url, proxy = address(self.url, job_id, after), websocket_proxy(self.url)
        with connect(url, additional_headers=self.headers, max_size=None, proxy=proxy) as websocket:
            while True:
                try:
                    yield parse_message(websocket.recv())
                except ConnectionClosed as closed:
                    check_end(closed, job_id)
                    return
