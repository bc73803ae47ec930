"""Operations that read rows of files and data sets outside the server, since a row may take much time and memory."""

from __future__ import annotations

from collections.abc import Iterator

from merlina.data.conversation import Pair
from merlina.data.dataset import ChainedRows, located, read_sources
from merlina.data.fingerprint import digest_of, fingerprint
from merlina.data.previews import stored_rows
from merlina.data.readers.data_files import DataFile, file_at
from merlina.data.readers.files import count_rows as count_rows_of
from merlina.data.readers.files import detect_format, parse_all
from merlina.data.readers.row_limit import RowLimit
from merlina.data.readers.sources import describe_encoding, file_format_of
from merlina.errors import DataError, HelperError
from merlina.schemas.datasets.config import DatasetConfig
from merlina.schemas.inspection import DataFacts
from merlina.schemas.operations import (
    CompareRows,
    CountRows,
    ExamineRows,
    ParsedUpload,
    ParseUpload,
    PreviewRows,
    RawRows,
)
from merlina.worker.helper.data_facts import examine_data
from merlina.worker.helper.phases import PHASES

_PREVIEW_SECONDS = 60.0
_WHOLE_FILE_SECONDS = 24 * 3600.0
_MAX_ROWS_EXAMINED = 500


def preview_rows(operation: PreviewRows) -> RawRows:
    """Return rows as stored. Raises DataError."""
    with PHASES.during(phase_name(operation.row), _PREVIEW_SECONDS, DataError):
        config, file = operation.config, file_at(operation.file)
        row_limit = RowLimit.of_megabytes(operation.max_row_mb)
        found = stored_rows.preview_rows(config, file, operation.token, operation.limit, row_limit, start=operation.row)
        warnings = [*describe_encoding(config.source, file), *found.warnings]
        return RawRows(**{**vars(found), "warnings": warnings}, total_rows=stated_rows(config, file))


def phase_name(row: int) -> str:
    """Return the name of the phase that reads rows from this number on."""
    return "Reading the first rows" if row == 1 else f"Reading the data set up to row {row:,}"


def stated_rows(dataset: DatasetConfig, file: DataFile | None) -> int | None:
    """Return the number of rows if the file states it, as Parquet does. Raises DataError."""
    if file is None:
        return None
    file_format = file_format_of(dataset.source, file)
    return count_rows_of(file, file_format) if file_format == "parquet" else None


def count_rows(operation: CountRows) -> int:
    """Count the rows of a whole file. Raises DataError."""
    with PHASES.during("Counting the rows", _WHOLE_FILE_SECONDS, DataError):
        file = file_at(operation.file)
        file_format = operation.file_format or detect_format(file, encoding=operation.encoding)
        limit = RowLimit.of_megabytes(operation.max_row_mb)
        return count_rows_of(file, file_format, limit, operation.encoding)


def parse_upload(operation: ParseUpload) -> ParsedUpload:
    """Read every row of an uploaded file and return its format and number of rows. Raises DataError."""
    with PHASES.during("Reading the file", _WHOLE_FILE_SECONDS, DataError):
        file_format = detect_format(operation.file, operation.filename)
        rows = parse_all(operation.file, file_format, RowLimit.of_megabytes(operation.max_row_mb))
        return ParsedUpload(file_format=file_format, total_rows=rows)


def examine_rows(operation: ExamineRows) -> DataFacts:
    """Examine a file's first rows as text. Raises DataError."""
    with PHASES.during("Reading the data set", _PREVIEW_SECONDS, DataError):
        row_limit = RowLimit.of_megabytes(operation.max_row_mb)
        return examine_data(operation.config, operation.files, None, row_limit, _MAX_ROWS_EXAMINED, None)


def compare_rows(operation: CompareRows) -> str | None:
    """Describe how rows and split of a data set differ from an earlier fingerprint; None if they do not."""
    with PHASES.during("Comparing the rows", _WHOLE_FILE_SECONDS, HelperError):
        config, files = operation.config, operation.source_files
        first, *others = config.training_parts
        training, evaluation = read_sources(
            [located(first, operation.file), *(located(part, files[part.location]) for part in others)],
            [located(part, files[part.location]) for part in config.eval_parts],
            None,
            answers_needed=operation.answers_needed,
            limit=RowLimit.of_megabytes(operation.max_row_mb),
            rules=operation.earlier.conversion_rules,
        )
        names = [part.name for part in config.eval_parts]
        digests = {name: digest_of(_pairs(rows)) for name, rows in zip(names, evaluation, strict=True)}
        now = fingerprint(_pairs(training), config.test_size, digests)
        return operation.earlier.difference(now.model_copy(update={"begins": tuple(training.begins[1:])}))


def _pairs(rows: ChainedRows) -> Iterator[Pair]:
    return (row for row in rows if isinstance(row, Pair))
