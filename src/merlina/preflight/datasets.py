"""Check the first rows of a data set."""

from __future__ import annotations

from merlina.errors import Finding, Severity
from merlina.preflight.report import CheckResult, error
from merlina.schemas.inspection import DataFacts


def check_rows(facts: DataFacts | None, problem: str | None) -> CheckResult:
    """Return an error if the data set has no usable rows, otherwise the row examiner's findings as warnings."""
    if facts is None:
        return CheckResult() if problem is None else error("dataset", problem)
    if facts.rows == 0:
        return error("dataset", "it has no rows")
    scope = "" if facts.all_rows else f" (in the first {facts.rows:,} rows)"
    severity: Severity = "warning" if facts.usable else "error"
    notes = [Finding(note, "dataset", "warning") for note in facts.notes]
    findings = [Finding(f"{finding.message}{scope}", "dataset", severity) for finding in facts.findings]
    return CheckResult(passed=facts.usable > 0, findings=(*notes, *findings))
