"""Jobs as clients see them (API document, "Training Job Management" and "Queue Management")."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field

from merlina.domain.job_states import JobState
from merlina.schemas.base import ResponseModel

Priority = Literal["low", "normal", "high"]
QueueState = Literal["queued", "running"]

PRIORITY_NUMBER: dict[Priority, int] = {"low": 1, "normal": 3, "high": 5}


class JobCreated(ResponseModel):
    """A job that is on disk and waits for its turn."""

    job_id: str
    status: JobState
    message: str
    warnings: list[str] = Field(default_factory=list)


class Requested(ResponseModel):
    """What a running job was asked to do and has not done yet."""

    stop_requested: bool = Field(default=False, description="a stop was requested and the run has not reached it yet")
    pause_requested: bool = Field(default=False, description="a pause was requested and the run has not reached it yet")


class JobStatus(Requested):
    """Where a job stands."""

    job_id: str
    status: JobState
    progress: float = Field(description="share of the optimizer steps done, 0 to 1; never falls")
    current_step: int | None
    total_steps: int | None
    loss: float | None
    eval_loss: float | None = None
    learning_rate: float | None = None
    gpu_memory: float | None = Field(default=None, description="peak GPU memory held by the run, in GiB")
    error: str | None
    wandb_url: str | None
    queue_position: int | None = Field(description="1 is next; null once the job runs")
    queue_state: QueueState | None
    output_dir: str | None = None
    base_model: str
    output_name: str
    priority: Priority
    preemptible: bool = Field(description="whether it makes way where a job of high priority waits for its place")
    created_at: str
    started_at: str | None = None
    ended_at: str | None = None
    attempt: int = Field(description="1, and one more for each resume")
    last_checkpoint: int | None = Field(default=None, description="optimizer step a resume would go on from")
    final_metrics: dict[str, float | None] | None = Field(
        default=None,
        description="once a model is saved: figures of that model, final_…; of the base model before training, "
        "initial_…; and kept_step, the optimizer step whose weights were saved",
    )
    seq: int = Field(description="number of the last event taken in")
    skipped_lines: int = Field(
        default=0, description="lines of the run's event log that are no events and were skipped"
    )


class JobSummary(Requested):
    """One line of `GET /jobs`."""

    status: JobState
    progress: float


class JobHistoryEntry(Requested):
    """One line of `GET /jobs/history`."""

    job_id: str
    status: JobState
    progress: float
    loss: float | None = None
    eval_loss: float | None = None
    last_checkpoint: int | None = Field(default=None, description="optimizer step a resume would go on from")
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
    count: int = Field(description="jobs on this page")
    total: int = Field(description="jobs that match, on all pages")


class MetricRow(ResponseModel):
    """The figures of one optimizer step; more than the named ones may be there."""

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
    count: int = Field(description="rows in this answer")
    total: int = Field(description="rows recorded for the job")


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
    since: str = Field(description="UTC, ISO 8601 with offset, to the millisecond")
    attempt: int


class JobTimeline(ResponseModel):
    """A job's states in the order in which it entered them; the last one is its present one."""

    job_id: str
    states: list[TimelineEntry]
    count: int


class JobAction(ResponseModel):
    """What became of a request about one job."""

    status: Literal["success", "warning"]
    message: str
    job_id: str


class LoadingCode(ResponseModel):
    """How a finished model is loaded."""

    job_id: str
    output_dir: str
    code: str = Field(
        description="Python that defines `model` and `tokenizer`, held as when their figures were measured"
    )


class StopResponse(JobAction):
    """What became of a stop."""

    was_queued: bool


class JobsCleared(ResponseModel):
    """What became of `DELETE /jobs`."""

    status: Literal["success"] = "success"
    message: str
    deleted_count: int


class QueueStats(ResponseModel):
    """The queue in five numbers."""

    queued_count: int
    running_count: int
    paused_count: int
    max_concurrent: int
    available_slots: int


class QueuedJob(ResponseModel):
    """A waiting job."""

    job_id: str
    priority: int = Field(description="1 low, 3 normal, 5 high")
    preemptible: bool
    position: int = Field(description="1 is next")
    waiting_for: str | None = Field(default=None, description="what keeps it from starting")


class RunningJob(Requested):
    """A running job."""

    job_id: str
    priority: int = Field(description="1 low, 3 normal, 5 high")
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
