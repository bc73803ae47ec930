"""The response of `POST /validate` (see docs/api.md)."""

from __future__ import annotations

from pydantic import ConfigDict, Field

from merlina.domain.adapter_targets import AdapterKind
from merlina.errors import Finding
from merlina.schemas.base import ResponseModel
from merlina.schemas.datasets.responses import DataFinding


class ValidationChecks(ResponseModel):
    """Whether each check passed. There may be further checks, which are null if not performed."""

    model_config = ConfigDict(extra="allow")

    gpu_available: bool
    vram_sufficient: bool
    disk_space_ok: bool
    model_accessible: bool
    dataset_valid: bool


class MemoryEstimate(ResponseModel):
    """Estimated peak memory of the run."""

    place: str = Field(description="`RAM`, or the GPU with its index.")
    needed_mb: int = Field(description="Same as expected_mb.")
    minimum_mb: int = Field(description="Peak with only the longest pair in a forward pass; must be free. MiB.")
    expected_mb: int = Field(
        description="Peak with forward passes of the most efficient size that fits into the free memory. MiB."
    )
    free_mb: int = Field(description="Free memory at the time of the check, in MiB.")
    parts_mb: dict[str, int] = Field(description="Components of expected_mb in MiB, the largest first.")


class TimeEstimate(ResponseModel):
    """Estimated duration of the run."""

    seconds: float = Field(
        description="Total time of optimizer steps, evaluations and reference log-probabilities, in seconds."
    )
    steps: int = Field(description="Number of optimizer steps.")
    earlier_run: str | None = Field(
        description="Job that provides the measured speed: the newest completed one with this model on the "
        "same kind of device. null: the estimate uses the processor's matrix-multiplication speed."
    )


class ValidationResults(ResponseModel):
    """Findings of all checks."""

    errors: list[str]
    warnings: list[str]
    findings: list[Finding] = Field(default_factory=list, description="Errors and warnings by field.")
    checks: ValidationChecks
    not_checked: list[str] = Field(
        default_factory=list, description="Checks that could not be completed, each with the reason."
    )
    adapters: list[AdapterKind] = Field(
        default_factory=list, description="How many layers of each kind get an adapter; empty without LoRA."
    )
    memory: MemoryEstimate | None = Field(
        default=None, description="Memory estimate; null if the model's size is unknown."
    )
    time: TimeEstimate | None = Field(
        default=None,
        description="Time estimate; null if rows or tokens cannot be counted or, for a run on a GPU, if no run "
        "with this model has completed on one.",
    )
    dataset_findings: list[DataFinding] = Field(default_factory=list)
    rows_examined: int = Field(
        default=0, description="Number of rows of the data set that were examined, from the first row on."
    )


class ValidationResponse(ResponseModel):
    """Result of the checks that precede a run."""

    valid: bool = Field(description="True if results.errors is empty.")
    results: ValidationResults
