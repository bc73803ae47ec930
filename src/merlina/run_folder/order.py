"""The run order: what the server asks of one attempt."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from merlina.schemas.training.config import TrainingConfig


class RunOrder(BaseModel):
    """The specification of one attempt, without tokens."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    job_id: str
    attempt: int
    resume: bool = False
    # The step from which this attempt continues, as the server announced it; 0: from the beginning.
    resume_step: int = Field(0, ge=0)
    config: TrainingConfig
    dataset_file: str | None = None
    # The files of additional sources, by their field in `dataset`, such as `sources.1` or `eval_sources.news`.
    source_files: dict[str, str] = {}
    # The addresses that data may be read from, by the setting ALLOWED_DATA_URLS.
    allowed_data_urls: tuple[str, ...] = ()
    output_dir: str
    trust_remote_code: bool = False
    # The number of the last event before this attempt, including the server's own transitions.
    after_seq: int = Field(0, ge=0)
    max_row_mb: int = 16
    # The GPUs assigned to the run; None on a machine without GPUs.
    gpus: list[int] | None = None
    # The number of ranks: one per GPU, or one without a GPU.
    num_ranks: int = Field(default=1, ge=1)
    # The estimate of the peak memory per GPU that was reported before the run, in MiB. Passes stay within it, unless
    # not even one with a single pair fits.
    memory_limit_mb: int | None = None
