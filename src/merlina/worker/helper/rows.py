"""Rows of files and data sets, read outside the server: a row may take long to parse and fill the memory."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

from merlina.data.dataset import SkippedRow, read_pairs, split_pairs
from merlina.data.doctor import Doctor
from merlina.data.files import count_rows, detect_format, parse_all
from merlina.data.fingerprint import Fingerprint, fingerprint
from merlina.data.formats import MARKERS
from merlina.data.pairs import Pair
from merlina.data.preview import preview_rows
from merlina.data.row_limit import RowLimit
from merlina.errors import DataError, HelperError
from merlina.schemas.datasets import DatasetConfig, FileFormat
from merlina.schemas.inspection import DataFacts
from merlina.schemas.training import TrainingConfig
from merlina.worker.helper.phases import PHASES

_PREVIEW_SECONDS = 60.0
_WHOLE_FILE_SECONDS = 24 * 3600.0
_ROWS_LOOKED_AT = 500


def first_rows(
    config: dict[str, Any], file: str | None, limit: int, token: str | None, max_row_mb: int
) -> dict[str, Any]:
    """A RawPreview, and `total_rows` where the file states it (Parquet). Raises DataError."""
    with PHASES.during("Reading the first rows", _PREVIEW_SECONDS, DataError):
        dataset, row_limit = DatasetConfig.model_validate(config), RowLimit.of_megabytes(max_row_mb)
        shown = preview_rows(dataset, Path(file) if file else None, token, limit, row_limit)
        return {**vars(shown), "total_rows": stated_rows(dataset, Path(file)) if file else None}


def stated_rows(dataset: DatasetConfig, file: Path) -> int | None:
    """The number of rows where the file states it itself. Raises DataError."""
    file_format = dataset.source.file_format or detect_format(file)
    return count_rows(file, file_format) if file_format == "parquet" else None


def count(file: str, file_format: FileFormat | None, max_row_mb: int) -> int:
    """Rows of a whole file. Raises DataError."""
    with PHASES.during("Counting the rows", _WHOLE_FILE_SECONDS, DataError):
        path = Path(file)
        return count_rows(path, file_format or detect_format(path), RowLimit.of_megabytes(max_row_mb))


def parse(file: str, name: str, max_row_mb: int) -> dict[str, Any]:
    """Read every row of an uploaded file: its format and number of rows. Raises DataError."""
    with PHASES.during("Reading the file", _WHOLE_FILE_SECONDS, DataError):
        path = Path(file)
        file_format = detect_format(path, name)
        return {
            "file_format": file_format,
            "total_rows": parse_all(path, file_format, RowLimit.of_megabytes(max_row_mb)),
        }


def look(config: dict[str, Any], file: str, max_row_mb: int) -> dict[str, Any]:
    """A DataFacts of a file's first rows as text, for when no tokenizer can be had. Raises DataError."""
    with PHASES.during("Reading the data set", _PREVIEW_SECONDS, DataError):
        training, limit = TrainingConfig.model_validate(config), RowLimit.of_megabytes(max_row_mb)
        dataset = training.dataset
        doctor, numbers = Doctor(MARKERS[dataset.format.format_type]), list[int]()
        rows = read_pairs(dataset, Path(file), None, needs_rejected=training.needs_rejected, limit=limit)
        for item in islice(rows, _ROWS_LOOKED_AT):
            if isinstance(item, SkippedRow):
                doctor.skip(item)
            else:
                doctor.see(item)
                numbers.append(item.number)
        _, held_out = split_pairs(numbers, dataset.test_size, training.seed)
        return DataFacts(
            rows=doctor.rows,
            all_rows=doctor.rows < _ROWS_LOOKED_AT,
            usable=doctor.usable,
            longest=None,
            highest_id=None,
            most_tokens=None,
            findings=doctor.findings(held_out),
        ).model_dump()


def compare(
    config: dict[str, Any], file: str, needs_rejected: bool, then: dict[str, Any], max_row_mb: int
) -> str | None:
    """How the rows and the split of a file differ from those of the fingerprint `then`; None where they do not."""
    with PHASES.during("Comparing the rows", _WHOLE_FILE_SECONDS, HelperError):
        dataset, path = DatasetConfig.model_validate(config), Path(file)
        rows = read_pairs(dataset, path, None, needs_rejected=needs_rejected, limit=RowLimit.of_megabytes(max_row_mb))
        pairs = (row for row in rows if isinstance(row, Pair))
        return Fingerprint.model_validate(then).difference(fingerprint(pairs, dataset.test_size, path))
