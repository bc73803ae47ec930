"""Is the data set there, can it be read, and what does it teach? Judged by its first rows."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

from merlina.data.dataset import SkippedRow, read_pairs, split_pairs
from merlina.data.doctor import Doctor
from merlina.data.formats import MARKERS
from merlina.data.pairs import Pair
from merlina.errors import MerlinaError
from merlina.preflight.findings import Finding
from merlina.schemas.inspection import DataFacts
from merlina.schemas.training import TrainingConfig

_ROWS_LOOKED_AT = 500


def look_without_tokens(config: TrainingConfig, file: Path) -> tuple[DataFacts | None, str | None]:
    """The first rows of a file as text, where no tokenizer can be had; or why they can't be read."""
    doctor, pairs = Doctor(MARKERS[config.dataset.format.format_type]), list[Pair]()
    rows = read_pairs(config.dataset, file, None, needs_rejected=config.needs_rejected)
    try:
        for item in islice(rows, _ROWS_LOOKED_AT):
            if isinstance(item, SkippedRow):
                doctor.skip(item)
            else:
                doctor.see(item)
                pairs.append(item)
    except MerlinaError as error:
        return None, error.message
    _, held_out = split_pairs(pairs, config.dataset.test_size, config.seed)
    facts = DataFacts(
        rows=doctor.rows,
        all_rows=doctor.rows < _ROWS_LOOKED_AT,
        usable=doctor.usable,
        longest=None,
        highest_id=None,
        most_tokens=None,
        findings=doctor.findings(held_out),
    )
    return facts, None


def judge_dataset(facts: DataFacts | None, error: str | None) -> Finding:
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
