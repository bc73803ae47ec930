"""What the first rows of a data set teach, judged."""

from __future__ import annotations

from merlina.preflight.findings import Finding
from merlina.schemas.inspection import DataFacts


def check_rows(facts: DataFacts | None, error: str | None) -> Finding:
    """Errors where nothing can be trained on, warnings for what the doctor found."""
    if facts is None:
        return Finding(passed=error is None, errors=(f"dataset: {error}",) if error else ())
    if facts.rows == 0:
        return Finding(passed=False, errors=("dataset: it has no rows",))
    looked_at = "" if facts.all_rows else f" (of the first {facts.rows:,} rows)"
    messages = tuple(f"dataset: {finding.message}{looked_at}" for finding in facts.findings)
    if facts.usable == 0:
        return Finding(passed=False, errors=messages)
    return Finding(warnings=messages)
