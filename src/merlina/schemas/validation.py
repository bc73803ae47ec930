"""The answer of `/validate` (API document, "Validate Training Configuration")."""

from __future__ import annotations

from pydantic import ConfigDict, Field

from merlina.domain.targets import AdapterKind
from merlina.schemas.base import ResponseModel
from merlina.schemas.datasets import DataFinding


class ValidationChecks(ResponseModel):
    """One boolean for each check; more than these may be there. Others than these are null where not checked."""

    model_config = ConfigDict(extra="allow")

    gpu_available: bool
    vram_sufficient: bool
    disk_space_ok: bool
    model_accessible: bool
    dataset_valid: bool


class MemoryEstimate(ResponseModel):
    """What the run will hold at its peak, in MiB.

    `minimum_mb` is with the longest pair alone in a forward pass, and must be free. `expected_mb` is with passes as
    large as are efficient and fit into what is free; the run stays within it.
    """

    place: str = Field(description="RAM, or the GPU by its index")
    needed_mb: int = Field(description="the same as expected_mb")
    minimum_mb: int
    expected_mb: int
    free_mb: int
    parts_mb: dict[str, int] = Field(description="what expected_mb is made of, the largest first")


class TimeEstimate(ResponseModel):
    """How long the optimizer steps, evaluations and the reference's pass will take together."""

    seconds: float
    steps: int = Field(description="optimizer steps")
    earlier_run: str | None = Field(
        description="the job whose speed it goes by: the newest completed one with this model on such a device; "
        "null where it goes by how fast this processor multiplies matrices"
    )


class ValidationResults(ResponseModel):
    """What the checks found, in words."""

    errors: list[str]
    warnings: list[str]
    checks: ValidationChecks
    not_checked: list[str] = Field(
        default_factory=list, description="what the checks leave open, each with the reason or the name of its check"
    )
    adapters: list[AdapterKind] = Field(
        default_factory=list, description="the kinds of layers and how much of each gets an adapter; empty without LoRA"
    )
    memory: MemoryEstimate | None = Field(default=None, description="null where the model's size can't be known")
    time: TimeEstimate | None = Field(
        default=None,
        description="null where rows or tokens can't be counted, or no run with this model was made on a GPU yet",
    )
    dataset_findings: list[DataFinding] = Field(default_factory=list)
    rows_examined: int = Field(default=0, description="rows of the data set that were looked at, from the first on")


class ValidationResponse(ResponseModel):
    """`valid` is true when there are no errors."""

    valid: bool = Field(description="true when results.errors is empty")
    results: ValidationResults
