"""Response models of jobs and the queue (docs/api.md, "Training" and "Jobs")."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field

from merlina.domain.job_states import JobState
from merlina.schemas.base import ResponseModel

Priority = Literal["low", "normal", "high"]
QueueState = Literal["queued", "running"]

PRIORITY_NUMBER: dict[Priority, int] = {"low": 1, "normal": 3, "high": 5}


class JobCreated(ResponseModel):
    """A job that was stored and queued."""

    job_id: str
    status: JobState
    message: str
    warnings: list[str] = Field(default_factory=list)


class Requested(ResponseModel):
    """The pending requests to a running job."""

    stop_requested: bool = Field(default=False, description="A stop was requested and is not completed.")
    pause_requested: bool = Field(default=False, description="A pause was requested and is not completed.")


class JobStatus(Requested):
    """State and progress of a job."""

    job_id: str
    status: JobState
    progress: float = Field(description="Fraction of the optimizer steps completed, 0 to 1; never decreases.")
    current_step: int | None
    total_steps: int | None
    loss: float | None
    eval_loss: float | None = None
    learning_rate: float | None = None
    gpu_memory: float | None = Field(default=None, description="Peak GPU memory of the run, in GiB.")
    error: str | None
    wandb_url: str | None
    queue_position: int | None = Field(description="1 starts next; null unless the job is queued.")
    queue_state: QueueState | None
    output_dir: str | None = None
    base_model: str
    output_name: str
    priority: Priority
    preemptible: bool = Field(description="Whether a high-priority job may preempt this one.")
    created_at: str
    started_at: str | None = None
    ended_at: str | None = None
    attempt: int = Field(description="Number of the current attempt; each resume starts the next one.")
    last_checkpoint: int | None = Field(default=None, description="Optimizer step from which a resume would continue.")
    final_metrics: dict[str, float | None] | None = Field(
        default=None,
        description="After a model was saved: its metrics (final_…), the base model's (initial_…), and kept_step, "
        "the optimizer step of the saved weights.",
    )
    seq: int = Field(description="Number of the last event ingested.")
    skipped_lines: int = Field(default=0, description="Lines of the event log that could not be applied.")


class JobSummary(Requested):
    """One entry of `GET /jobs`."""

    status: JobState
    progress: float


class JobHistoryEntry(Requested):
    """One entry of `GET /jobs/history`."""

    job_id: str
    status: JobState
    progress: float
    loss: float | None = None
    eval_loss: float | None = None
    last_checkpoint: int | None = Field(default=None, description="Optimizer step from which a resume would continue.")
    created_at: str
    updated_at: str
    output_dir: str | None
    error: str | None
    base_model: str
    output_name: str
    priority: Priority
    preemptible: bool


class JobHistory(ResponseModel):
    """One page of all jobs, newest first."""

    jobs: list[JobHistoryEntry]
    count: int = Field(description="Number of jobs on this page.")
    total: int = Field(description="Number of matching jobs on all pages.")


class MetricRow(ResponseModel):
    """The metrics of one optimizer step. There may be further metrics."""

    model_config = ConfigDict(extra="allow")

    step: int
    loss: float | None = None
    eval_loss: float | None = None
    learning_rate: float | None = None
    timestamp: str


class JobMetrics(ResponseModel):
    """A job's metric rows in step order."""

    job_id: str
    metrics: list[MetricRow]
    count: int = Field(description="Number of rows in this response.")
    total: int = Field(description="Number of rows recorded for the job.")


class LogLine(ResponseModel):
    """One line of a run's log."""

    seq: int
    timestamp: str
    level: Literal["info", "warning", "error"]
    message: str


class JobLogs(ResponseModel):
    """A run's log, oldest first."""

    job_id: str
    logs: list[LogLine]
    count: int


class TimelineEntry(ResponseModel):
    """A state that a job entered."""

    state: JobState
    since: str = Field(description="UTC, ISO 8601 with offset, to the millisecond.")
    attempt: int


class JobTimeline(ResponseModel):
    """A job's states in the order in which it entered them, up to the current one."""

    job_id: str
    states: list[TimelineEntry]
    count: int


class JobAction(ResponseModel):
    """Result of a command on one job."""

    status: Literal["success", "warning"]
    message: str
    job_id: str


class LoadingCode(ResponseModel):
    """Loading instructions for a finished model."""

    job_id: str
    output_dir: str
    code: str = Field(
        description="Python code that defines `model` and `tokenizer`, in the precision of the reported metrics."
    )


class StopResponse(JobAction):
    """Result of a stop."""

    was_queued: bool


class JobsCleared(ResponseModel):
    """`DELETE /jobs`."""

    status: Literal["success"] = "success"
    message: str
    deleted_count: int


class QueueStats(ResponseModel):
    """Statistics of the queue."""

    queued_count: int
    running_count: int
    paused_count: int
    max_concurrent: int
    available_slots: int


class QueuedJob(ResponseModel):
    """A waiting job."""

    job_id: str
    priority: int = Field(description="1 low, 3 normal, 5 high.")
    preemptible: bool
    position: int = Field(description="1 starts next.")
    waiting_for: str | None = Field(default=None, description="Reason why the job cannot start yet.")


class RunningJob(Requested):
    """A running job."""

    job_id: str
    priority: int = Field(description="1 low, 3 normal, 5 high.")
    preemptible: bool


class QueueStatus(ResponseModel):
    """`GET /queue/status`."""

    stats: QueueStats
    queued_jobs: list[QueuedJob]
    running_jobs: list[RunningJob]


class QueueJobs(ResponseModel):
    """`GET /queue/jobs`."""

    queued: list[QueuedJob]
    running: list[RunningJob]
