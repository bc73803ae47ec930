"""Limits on the size of a row, enforced while rows are read, so that no file exhausts memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from merlina.domain.units import MIB
from merlina.errors import DataError
from merlina.schemas.parsing.json_text import has_more_values

_MAX_VALUES = 1_000_000
_MAX_COLUMNS = 10_000
_BYTES_PER_VALUE = 8


@dataclass(frozen=True)
class RowLimit:
    """Limits on a row: `size` bytes of text, 10,000 columns and 1,000,000 nested values."""

    size: int = 16 * MIB

    @staticmethod
    def of_megabytes(megabytes: int) -> RowLimit:
        """Return the limit that MAX_ROW_SIZE_MB sets, in MiB."""
        return RowLimit(megabytes * MIB)

    def exceeded(self, place: str) -> DataError:
        """Return the error for a row that is too large; `place` names it, such as "line 3"."""
        return DataError(
            f"{place} is larger than {self.size // MIB:,} MiB, the limit for one row. Split it, raise MAX_ROW_SIZE_MB, "
            "or check the format: a whole file in one line often has the wrong extension"
        )

    def check_json(self, text: bytes, place: str) -> None:
        """Check the text of a row. Raises DataError."""
        if len(text) > self.size:
            raise self.exceeded(place)
        if len(text) > _MAX_VALUES and has_more_values(text, _MAX_VALUES):
            raise _too_many_values(place)

    def check_json_text(self, text: str, place: str) -> None:
        """Check decoded text of a row. Raises DataError."""
        if 4 * len(text) > min(self.size, _MAX_VALUES):
            self.check_json(text.encode("utf-8", "surrogatepass"), place)

    def check_columns(self, columns: int, place: str) -> None:
        """Raise DataError for more than 10,000 columns."""
        if columns > _MAX_COLUMNS:
            raise DataError(f"{place} has {columns:,} columns; a row may have at most {_MAX_COLUMNS:,}")

    def check_values(self, values: int, place: str) -> None:
        """Raise DataError for more than 1,000,000 nested values."""
        if values > _MAX_VALUES:
            raise _too_many_values(place)

    def check_row(self, row: Mapping[str, Any], place: str) -> None:
        """Check a row that another library has read. Raises DataError."""
        self.check_columns(len(row), place)
        if approximate_size(row, self.size) > self.size:
            raise self.exceeded(place)


def approximate_size(value: Any, stop_above: int) -> int:
    """Return the approximate size of a row in bytes; counting stops above `stop_above`."""
    size, waiting = 0, [value]
    while waiting and size <= stop_above:
        item = waiting.pop()
        size += len(item) if isinstance(item, (str, bytes)) else _BYTES_PER_VALUE
        if isinstance(item, Mapping):
            waiting += item.keys()
            waiting += item.values()
        elif isinstance(item, (list, tuple)):
            waiting += item
    return size


def _too_many_values(place: str) -> DataError:
    return DataError(f"{place} contains more than {_MAX_VALUES:,} values; a row may have at most that many")
