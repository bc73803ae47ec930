"""Check the first rows of a data set."""

from __future__ import annotations

from merlina.preflight.findings import Finding
from merlina.schemas.inspection import DataFacts


def check_rows(facts: DataFacts | None, error: str | None) -> Finding:
    """Return an error if the data set has no usable rows, otherwise the data doctor's findings as warnings."""
    if facts is None:
        return Finding(passed=error is None, errors=(f"dataset: {error}",) if error else ())
    if facts.rows == 0:
        return Finding(passed=False, errors=("dataset: it has no rows",))
    scope = "" if facts.all_rows else f" (in the first {facts.rows:,} rows)"
    messages = tuple(f"dataset: {finding.message}{scope}" for finding in facts.findings)
    if facts.usable == 0:
        return Finding(passed=False, errors=messages)
    return Finding(warnings=messages)
