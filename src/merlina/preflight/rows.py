"""How many rows a data set has, where that can be told without reading it for long."""

from __future__ import annotations

from pathlib import Path

from merlina.data.files import count_rows, detect_format, known_rows
from merlina.schemas.datasets import DatasetSource
from merlina.storage import uploads
from merlina.storage.database import Database

_SOON_COUNTED_BYTES = 128 * 1024**2


def rows_known(source: DatasetSource, file: Path | None, database: Database) -> int | None:
    """Those of an upload, of a Parquet file, and of a file that was counted before; None for any other."""
    if source.dataset_id is not None:
        with database.read() as connection:
            record = uploads.get(connection, source.dataset_id)
        return record.total_rows if record else None
    if file is None:
        return None
    return known_rows(file, source.file_format or detect_format(file))


def rows_soon_known(source: DatasetSource, file: Path, database: Database) -> int | None:
    """The same, and those of a file that is counted within a second or so."""
    rows = rows_known(source, file, database)
    if rows is None and file.stat().st_size <= _SOON_COUNTED_BYTES:
        return count_rows(file, source.file_format or detect_format(file))
    return rows
