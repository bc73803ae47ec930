"""The result of a check, and the report on all checks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TypeVar

from merlina.domain.adapter_targets import AdapterKind
from merlina.domain.data_urls import FileLocation
from merlina.errors import Finding, Severity
from merlina.schemas.inspection import DataFacts
from merlina.schemas.validation import (
    MemoryEstimate,
    TimeEstimate,
    ValidationChecks,
    ValidationResponse,
    ValidationResults,
)

_Item = TypeVar("_Item")


@dataclass(frozen=True)
class CheckResult:
    """Result of a check: whether it passed, with its findings. An error rejects the run, a warning does not.

    `passed` is None if the check was not performed. `not_checked` names what remains open, with the reason.
    """

    passed: bool | None = True
    findings: tuple[Finding, ...] = ()
    not_checked: tuple[str, ...] = ()

    @property
    def errors(self) -> tuple[str, ...]:
        return _texts(self.findings, "error")

    @property
    def warnings(self) -> tuple[str, ...]:
        return _texts(self.findings, "warning")


def error(field: str | None, message: str) -> CheckResult:
    """Return the result of a check that failed."""
    return CheckResult(passed=False, findings=(Finding(message, field),))


def warning(field: str | None, message: str, *, passed: bool = False) -> CheckResult:
    """Return the result of a check with a warning."""
    return CheckResult(passed=passed, findings=(Finding(message, field, "warning"),))


@dataclass
class Report:
    """Results of all checks by name, with the facts and estimates they are based on.

    `files` are those of all sources that can be read by their field, None for the Hub; `dataset_file` is the first.
    """

    results: dict[str, CheckResult] = field(default_factory=dict)
    dataset_file: FileLocation | None = None
    files: dict[str, FileLocation | None] = field(default_factory=dict)
    adapters: list[AdapterKind] = field(default_factory=list)
    memory: MemoryEstimate | None = None
    time: TimeEstimate | None = None
    data: DataFacts | None = None

    @property
    def findings(self) -> list[Finding]:
        """The findings of all checks, without repetitions."""
        return _once(finding for result in self.results.values() for finding in result.findings)

    @property
    def errors(self) -> list[str]:
        return list(_texts(self.findings, "error"))

    @property
    def warnings(self) -> list[str]:
        return list(_texts(self.findings, "warning"))

    def response(self) -> ValidationResponse:
        checks = ValidationChecks.model_validate({name: result.passed for name, result in self.results.items()})
        results = ValidationResults(
            errors=self.errors,
            warnings=self.warnings,
            findings=self.findings,
            checks=checks,
            not_checked=_once(open_ for result in self.results.values() for open_ in result.not_checked),
            adapters=self.adapters,
            memory=self.memory,
            time=self.time,
            dataset_findings=self.data.findings if self.data else [],
            rows_examined=self.data.rows if self.data else 0,
        )
        return ValidationResponse(valid=not self.errors, results=results)


def _once(items: Iterable[_Item]) -> list[_Item]:
    """Return the items in order, without repetitions."""
    return list(dict.fromkeys(items))


def _texts(findings: Iterable[Finding], severity: Severity) -> tuple[str, ...]:
    return tuple(str(finding) for finding in findings if finding.severity == severity)
