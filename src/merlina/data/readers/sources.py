"""Resolve a DatasetSource to a file, an address or the Hub, and open its rows."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from merlina.data.readers.data_files import DataFile
from merlina.data.readers.files import Row, detect_format, encoding_note, read_rows
from merlina.data.readers.hub import check_not_a_folder, read_hub_rows
from merlina.data.readers.row_limit import RowLimit
from merlina.domain.data_urls import FileLocation
from merlina.errors import DataError, MerlinaError, NotFoundError
from merlina.paths import AllowedPaths
from merlina.schemas.datasets.config import DatasetConfig
from merlina.schemas.datasets.sources import DatasetSource, FileFormat

_USUAL_LIMIT = RowLimit()


def resolve_file(source: DatasetSource, uploads_dir: Path, allowed: AllowedPaths) -> FileLocation | None:
    """Return where the file to read is; None for the Hub. Nothing is read from an address.

    Raises ForbiddenError for a path or an address that is not `allowed`, NotFoundError for a missing file, DataError
    for a Hub id that is a local folder.
    """
    if source.source_type == "url":
        return allowed.remote_file(str(source.url))
    if source.source_type == "upload":
        return _uploaded_file(str(source.dataset_id), uploads_dir)
    if source.source_type == "local_file":
        return _local_file(str(source.file_path), allowed)
    check_not_a_folder(str(source.repo_id))
    return None


def resolve_additional_files(config: DatasetConfig, uploads_dir: Path, allowed: AllowedPaths) -> dict[str, str]:
    """Return the files on this machine of all sources but the first one to train on, by field.

    Raises DataError, naming the field, also for an address that is not allowed.
    """
    resolved = {}
    for part in (*config.training_parts[1:], *config.eval_parts):
        try:
            file = resolve_file(part.config.source, uploads_dir, allowed)
        except MerlinaError as error:
            raise DataError(f"dataset.{part.location}: {error.message}") from error
        if isinstance(file, Path):
            resolved[part.location] = str(file)
    return resolved


def open_rows(
    source: DatasetSource,
    file: DataFile | None,
    token: str | None,
    *,
    download: bool = False,
    limit: RowLimit = _USUAL_LIMIT,
    start: int = 1,
) -> Iterator[Row]:
    """Yield the rows of the resolved source from number `start` on.

    `download` caches a Hub data set instead of streaming it.
    """
    if file is None:
        return islice(read_hub_rows(source, token, download=download, limit=limit), start - 1, None)
    return read_rows(file, file_format_of(source, file), limit, source.encoding, start)


def file_format_of(source: DatasetSource, file: DataFile) -> FileFormat:
    """Return the format of the source's file, which is detected if the source does not name it. Raises DataError."""
    return source.file_format or detect_format(file, encoding=source.encoding)


def describe_encoding(source: DatasetSource, file: DataFile | None) -> list[str]:
    """Return a note on the encoding that was detected; none for UTF-8, Parquet and the Hub. Raises DataError."""
    if file is None or source.encoding is not None:
        return []
    note = encoding_note(file, file_format_of(source, file))
    return [note] if note else []


def _uploaded_file(dataset_id: str, uploads_dir: Path) -> Path:
    found = list((uploads_dir / dataset_id).glob("rows.*"))
    if not found:
        raise NotFoundError(f"There is no upload {dataset_id!r}; GET /dataset/uploads lists them")
    return found[0]


def _local_file(file_path: str, allowed: AllowedPaths) -> Path:
    path = allowed.resolve(file_path, "file_path")
    if not os.path.isfile(path):
        raise NotFoundError(f"There is no file {file_path!r} on the server's machine")
    return path
