"""Receives uploaded data sets: streamed to a temporary folder, parsed completely, then renamed into place."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import secrets
import threading
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

from anyio import CancelScope
from pydantic import TypeAdapter, ValidationError
from starlette.requests import ClientDisconnect, Request

from merlina.api.long_requests import run_in_thread, run_while_connected
from merlina.api.services import Services
from merlina.api.uploads.multipart import receive_file
from merlina.checkpoints import sync
from merlina.errors import BusyError, NotFoundError, OverridableError, StoredConfigError
from merlina.private_files import write_private
from merlina.schemas.datasets.sources import FileFormat
from merlina.schemas.operations import ParseUpload
from merlina.schemas.parsing.stored_config import read_stored_config
from merlina.storage import jobs, uploads
from merlina.storage.database import Database
from merlina.storage.jobs import JobRecord
from merlina.storage.uploads import UploadRecord

_INCOMING = re.compile(r"\.incoming_upload_\d{8}_\d{6}_[0-9a-f]{8}")
_UPLOAD = re.compile(r"upload_\d{8}_\d{6}_[0-9a-f]{8}")
_DELETED = re.compile(rf"\.deleted_({_UPLOAD.pattern})")
# A copy of the upload's database row, from which it is listed again if the database is lost.
_RECORD_FILE = "upload.json"
_OWN_FILES = (_RECORD_FILE, "rows", *(f"rows.{file_format}" for file_format in get_args(FileFormat)))
_MAX_NAMED = 10
_RECORD = TypeAdapter(UploadRecord)
_log = logging.getLogger(__name__)
_PARSE_SECONDS = 24 * 3600.0


async def accept_upload(request: Request, services: Services) -> UploadRecord:
    """Receive and store an upload. Raises the errors of receiving and parsing, after which no file is left."""
    limits = services.upload_limits
    async with limits.receiving(), _incoming_in_threads(services) as incoming:
        max_bytes = services.settings.max_upload_size_mb * 1024**2
        filename = await receive_file(request, incoming.file, max_bytes, limits.threads)
        return await run_while_connected(request, limits.parsing, _store_unless_closed, services, incoming, filename)


def _store_unless_closed(
    services: Services, incoming: _Incoming, filename: str, *, closed: threading.Event
) -> UploadRecord:
    try:
        return _store(services, incoming, filename, closed)
    except BusyError:
        if closed.is_set():
            raise ClientDisconnect from None
        raise


def store_rows(services: Services, rows: Iterable[Mapping[str, Any]], filename: str) -> UploadRecord:
    """Store rows as an upload, as if a client had uploaded them as a jsonl file."""
    with _incoming(services) as incoming:
        with incoming.file.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        return _store(services, incoming, filename)


def delete_upload(services: Services, dataset_id: str, *, force: bool) -> None:
    """Delete an upload and its file; files of other programs in its folder are kept.

    Raises NotFoundError, or OverridableError without `force` while a job needs the file to run or to resume.
    """
    folder = services.settings.uploads_dir / dataset_id
    deleted, is_renamed = _deleted_name(folder), False
    try:
        with services.database.write() as connection:
            if uploads.get(connection, dataset_id) is None:
                raise NotFoundError(f"There is no upload {dataset_id!r}; GET /dataset/uploads lists them")
            in_folder = [job for job in jobs.needing_data(connection, dataset_id) if _reads(job, folder)]
            if in_folder and not force:
                raise OverridableError(_needed_by(dataset_id, in_folder))
            uploads.remove(connection, dataset_id)
            # Within the transaction, so that a job added at the same time finds its file either present or deleted.
            with contextlib.suppress(FileNotFoundError):
                folder.rename(deleted)
                is_renamed = True
    except BaseException:
        # The transaction was rolled back, for example because the disk is full.
        if is_renamed:
            with contextlib.suppress(OSError):
                deleted.rename(folder)
        raise
    _complete_deletion(folder)


def _deleted_name(folder: Path) -> Path:
    """Return the folder's name between the transaction of its deletion and the removal of its files."""
    return folder.with_name(f".deleted_{folder.name}")


def _complete_deletion(folder: Path) -> None:
    deleted = _deleted_name(folder)
    _remove_files(deleted)
    with contextlib.suppress(FileNotFoundError):
        deleted.rename(folder)  # it contains files of other programs


def recover_uploads(database: Database, uploads_dir: Path) -> None:
    """Reconcile files and database after a crash, or after the database was lost, restored or replaced.

    Incomplete uploads are removed. Deletions are completed if the database has committed them and undone otherwise.
    Uploads that are missing in the database are listed again.
    """
    with database.read() as connection:
        known = {record.dataset_id for record in uploads.newest_first(connection)}
    for path in list(uploads_dir.iterdir()):
        if path.is_symlink():
            continue
        if _INCOMING.fullmatch(path.name):
            _remove_files(path)
        elif deleted := _DELETED.fullmatch(path.name):
            folder = uploads_dir / deleted[1]
            if folder.name in known:
                path.rename(folder)
            else:
                _complete_deletion(folder)
    _list_again(database, uploads_dir, known)


def _list_again(database: Database, uploads_dir: Path, known: Set[str]) -> None:
    folders = [path for path in uploads_dir.iterdir() if _UPLOAD.fullmatch(path.name) and path.name not in known]
    found = [record for folder in folders if (record := _read_record(folder)) is not None]
    if found:
        _log.warning("%d uploads were missing in the database and are listed again from their folders", len(found))
        with database.write() as connection:
            for record in found:
                uploads.add(connection, record)


def _read_record(folder: Path) -> UploadRecord | None:
    try:
        record = _RECORD.validate_json((folder / _RECORD_FILE).read_bytes())
    except (OSError, ValidationError):
        return None
    rows = folder / f"rows.{record.file_format}"
    is_complete = record.dataset_id == folder.name and rows.is_file() and rows.stat().st_size == record.size
    return record if is_complete else None


def _reads(job: JobRecord, folder: Path) -> bool:
    """Return whether a job reads the upload in a folder, by its id or by the path of its file."""
    files = [Path(job.dataset_file)] if job.dataset_file else []
    # The job of a configuration that cannot be read cannot run again either.
    with contextlib.suppress(StoredConfigError):
        dataset = read_stored_config(job.config, job.job_id).dataset
        for part in (*dataset.training_parts, *dataset.eval_parts):
            if part.config.source.dataset_id == folder.name:
                return True
            files += [Path(part.config.source.file_path)] if part.config.source.file_path else []
    return any(os.path.realpath(file.parent) == os.path.realpath(folder) for file in files)


def _needed_by(dataset_id: str, users: Sequence[JobRecord]) -> str:
    shown = ", ".join(f"{job.job_id} ({job.state})" for job in users[:_MAX_NAMED])
    more = f" and {len(users) - _MAX_NAMED} more" if len(users) > _MAX_NAMED else ""
    return (
        f"Upload {dataset_id} is needed by {shown}{more}, to run or to resume; delete those jobs first, or delete the "
        "upload anyway with force=true"
    )


def _remove_files(folder: Path) -> None:
    """Remove the files of an upload, and its folder if it is then empty."""
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            if path.name in _OWN_FILES:
                path.unlink(missing_ok=True)
        folder.rmdir()


@dataclass(frozen=True)
class _Incoming:
    """An upload in progress: its id, its time (epoch seconds), and the file to write."""

    dataset_id: str
    now: float
    file: Path


@contextlib.asynccontextmanager
async def _incoming_in_threads(services: Services) -> AsyncIterator[_Incoming]:
    """Run `_incoming` in a thread, since the event loop must not wait for the disk."""
    threads = services.upload_limits.threads
    stack = contextlib.ExitStack()
    incoming = await run_in_thread(threads, stack.enter_context, _incoming(services))
    try:
        yield incoming
    finally:
        with CancelScope(shield=True):
            await run_in_thread(threads, stack.close)


@contextlib.contextmanager
def _incoming(services: Services) -> Iterator[_Incoming]:
    now = time.time()
    timestamp = datetime.fromtimestamp(now, UTC).strftime("%Y%m%d_%H%M%S")
    dataset_id = f"upload_{timestamp}_{secrets.token_hex(4)}"
    folder = services.settings.uploads_dir / f".incoming_{dataset_id}"
    folder.mkdir(parents=True, mode=0o700)
    try:
        yield _Incoming(dataset_id, now, folder / "rows")
    finally:
        _remove_files(folder)


def _store(
    services: Services, incoming: _Incoming, filename: str, closed: threading.Event | None = None
) -> UploadRecord:
    operation = ParseUpload(file=incoming.file, filename=filename, max_row_mb=services.settings.max_row_size_mb)
    parsed = services.helpers.rows.call(operation, timeout=_PARSE_SECONDS, closed=closed)
    record = UploadRecord(
        dataset_id=incoming.dataset_id,
        filename=filename,
        size=incoming.file.stat().st_size,
        created_at=incoming.now,
        file_format=parsed.file_format,
        total_rows=parsed.total_rows,
    )
    folder = services.settings.uploads_dir / incoming.dataset_id
    folder.mkdir(mode=0o700)
    try:
        sync(incoming.file)
        os.replace(incoming.file, folder / f"rows.{record.file_format}")
        write_private(folder / _RECORD_FILE, _RECORD.dump_json(record, indent=2))
        for path in (folder, folder.parent):
            sync(path)
        with services.database.write() as connection:
            uploads.add(connection, record)
    except BaseException:
        _remove_files(folder)
        raise
    return record
