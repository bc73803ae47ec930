"""Count the rows of data sets and cache the results."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from merlina.data.readers.compression import compression_of
from merlina.domain.data_urls import DataUrl, FileLocation, RemoteFile
from merlina.executors.helper_pools import HelperPools
from merlina.schemas.datasets.sources import DatasetSource
from merlina.schemas.operations import CountRows
from merlina.storage import uploads
from merlina.storage.database import Database

_QUICK_COUNT_BYTES = 128 * 1024**2
_USUAL_GROWTH = 8
_COUNTS_KEPT = 256
_COUNT_SECONDS = 24 * 3600.0
_Version = tuple[Path, str | None, str | None, int, int]


@dataclass(frozen=True)
class RowCounts:
    """Row counts of files, computed by helpers and cached until the file changes."""

    database: Database
    helpers: HelperPools
    max_row_mb: int
    _counted: dict[_Version, int] = field(default_factory=dict)

    def known(self, source: DatasetSource, file: FileLocation | None, stated: int | None = None) -> int | None:
        """Return a count that is available at once: of an upload, `stated` by the file or cached; None otherwise."""
        if source.dataset_id is not None:
            with self.database.read() as connection:
                record = uploads.get(connection, source.dataset_id)
            return record.total_rows if record else None
        if stated is not None or not isinstance(file, Path):
            return stated
        return self._counted.get(_version(source, file))

    def count(self, source: DatasetSource, file: Path, closed: threading.Event | None = None) -> int:
        """Count the rows of a file, which may be slow. Raises what `HelperPool.call` does, also for unreadable rows."""
        known = self.known(source, file)
        if known is not None:
            return known
        version = _version(source, file)
        rows = self._count(source, file, closed)
        if len(self._counted) >= _COUNTS_KEPT:
            self._counted.clear()
        self._counted[version] = rows
        return rows

    def count_if_quick(
        self, source: DatasetSource, file: FileLocation, closed: threading.Event | None = None
    ) -> int | None:
        """Return a count that is known or takes about a second; None otherwise. Raises what `count` does."""
        if isinstance(file, RemoteFile):
            name = PurePath(DataUrl.parse(file.url).file_name)
            return self._count(source, file, closed) if _is_parquet(source, name) else None
        known = self.known(source, file)
        if known is None and (_is_parquet(source, file) or _approximate_size(file) <= _QUICK_COUNT_BYTES):
            return self.count(source, file, closed)
        return known

    def _count(self, source: DatasetSource, file: FileLocation, closed: threading.Event | None) -> int:
        operation = CountRows(
            file=file, file_format=source.file_format, encoding=source.encoding, max_row_mb=self.max_row_mb
        )
        return self.helpers.reader_of(file).call(operation, timeout=_COUNT_SECONDS, closed=closed)


def _is_parquet(source: DatasetSource, file: PurePath) -> bool:
    return (source.file_format or file.suffix.removeprefix(".")) == "parquet"


def _approximate_size(file: Path) -> int:
    """Return the size of the file in bytes once it is decompressed, as text compresses on average."""
    return file.stat().st_size * (_USUAL_GROWTH if compression_of(file) else 1)


def _version(source: DatasetSource, file: Path) -> _Version:
    facts = file.stat()
    return file, source.file_format, source.encoding, facts.st_mtime_ns, facts.st_size
