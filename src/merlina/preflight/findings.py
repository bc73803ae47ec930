"""The finding of one check, and the report on all checks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from merlina import errors as merlina_errors
from merlina.domain.targets import AdapterKind
from merlina.schemas.inspection import DataFacts
from merlina.schemas.validation import (
    MemoryEstimate,
    TimeEstimate,
    ValidationChecks,
    ValidationResponse,
    ValidationResults,
)


@dataclass(frozen=True)
class Finding:
    """Result of a check: whether it passed, with errors, which reject the run, and warnings.

    `passed` is None if the check was not performed. `not_checked` names what remains open, with the reason.
    """

    passed: bool | None = True
    errors: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    not_checked: tuple[str, ...] = ()


@dataclass
class Report:
    """Findings of all checks by name, with the facts and estimates they are based on."""

    findings: dict[str, Finding] = field(default_factory=dict)
    dataset_file: Path | None = None
    adapters: list[AdapterKind] = field(default_factory=list)
    memory: MemoryEstimate | None = None
    time: TimeEstimate | None = None
    data: DataFacts | None = None

    @property
    def errors(self) -> list[str]:
        return _once(error for finding in self.findings.values() for error in finding.errors)

    @property
    def warnings(self) -> list[str]:
        return _once(warning for finding in self.findings.values() for warning in finding.warnings)

    @property
    def all_findings(self) -> list[merlina_errors.Finding]:
        """Errors and warnings of all checks."""
        found = [merlina_errors.Finding(line) for line in self.errors]
        return found + [merlina_errors.Finding(line, severity="warning") for line in self.warnings]

    def response(self) -> ValidationResponse:
        checks = ValidationChecks.model_validate({name: finding.passed for name, finding in self.findings.items()})
        results = ValidationResults(
            errors=self.errors,
            warnings=self.warnings,
            findings=self.all_findings,
            checks=checks,
            not_checked=_once(open_ for finding in self.findings.values() for open_ in finding.not_checked),
            adapters=self.adapters,
            memory=self.memory,
            time=self.time,
            dataset_findings=self.data.findings if self.data else [],
            rows_examined=self.data.rows if self.data else 0,
        )
        return ValidationResponse(valid=not self.errors, results=results)


def _once(lines: Iterable[str]) -> list[str]:
    """Return the lines in order, without repetitions."""
    return list(dict.fromkeys(lines))
