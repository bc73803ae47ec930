"""Is the data set there, can it be read, and does it give pairs? Looks at its first rows only."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

from merlina.data.columns import map_columns
from merlina.data.pairs import UnusableRowError, to_pair
from merlina.data.sources import open_rows
from merlina.errors import DataError
from merlina.preflight.findings import Finding
from merlina.preflight.hub import check_repo
from merlina.schemas.datasets import DatasetConfig

_ROWS_LOOKED_AT = 200


def check_dataset(config: DatasetConfig, file: Path | None, token: str | None) -> Finding:
    """`file` is the resolved source; of a Hub data set, which has none, only the presence is checked."""
    if file is None:
        return check_repo(str(config.source.repo_id), "dataset", "dataset.source.repo_id", token)
    reasons: list[str] = []
    usable = 0
    try:
        for number, row in enumerate(islice(open_rows(config.source, file, None), _ROWS_LOOKED_AT), start=1):
            try:
                to_pair(map_columns(row, config.column_mapping))
                usable += 1
            except UnusableRowError as error:
                reasons.append(f"row {number}: {error.message}")
    except DataError as error:
        return Finding(passed=False, errors=(f"dataset: {error.message}",))
    return _judge(usable, reasons)


def _judge(usable: int, reasons: list[str]) -> Finding:
    if usable == 0 and not reasons:
        return Finding(passed=False, errors=("dataset: it has no rows",))
    shown = "; ".join(reasons[:3])
    if usable == 0:
        return Finding(passed=False, errors=(f"dataset: none of its first {len(reasons)} rows can be used: {shown}",))
    if reasons:
        return Finding(
            warnings=(f"dataset: {len(reasons)} of its first {usable + len(reasons)} rows can't be used: {shown}",)
        )
    return Finding()
