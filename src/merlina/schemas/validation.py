"""The answer of `/validate` (API document, "Validate Training Configuration")."""

from __future__ import annotations

from pydantic import ConfigDict, Field

from merlina.schemas.base import Response


class ValidationChecks(Response):
    """One boolean a check; more than these may be there."""

    model_config = ConfigDict(extra="allow")

    gpu_available: bool
    vram_sufficient: bool
    disk_space_ok: bool
    model_accessible: bool
    dataset_valid: bool


class ValidationResults(Response):
    """What the checks found, in words."""

    errors: list[str]
    warnings: list[str]
    checks: ValidationChecks


class ValidationResponse(Response):
    """`valid` is true when there are no errors."""

    valid: bool = Field(description="true when results.errors is empty")
    results: ValidationResults
