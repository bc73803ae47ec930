"""Their column names to ours."""

from __future__ import annotations

from collections.abc import Mapping

from merlina.data.files import Row
from merlina.errors import DataError
from merlina.schemas.datasets import PairColumn


def map_columns(row: Row, mapping: Mapping[str, PairColumn] | None) -> Row:
    """The row with its columns renamed. Raises DataError where the mapping names a column it doesn't have."""
    if not mapping:
        return row
    missing = [name for name in mapping if name not in row]
    if missing:
        raise DataError(f"column_mapping names {', '.join(map(repr, missing))}; the columns are {', '.join(row)}")
    targets = set(mapping.values())
    kept = {name: value for name, value in row.items() if name not in mapping and name not in targets}
    return {**kept, **{target: row[name] for name, target in mapping.items()}}
