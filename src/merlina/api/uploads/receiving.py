"""Taking in an uploaded data set: streamed beside, parsed as a whole, moved into place; or gone without a trace."""

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

from merlina.api.disconnects import run_slow, run_while_connected
from merlina.api.services import Services
from merlina.api.uploads.multipart import receive_file
from merlina.checkpoints import sync
from merlina.errors import BusyError, NotFoundError, OverridableError
from merlina.runs import write_private
from merlina.schemas.datasets import FileFormat
from merlina.storage import jobs, uploads
from merlina.storage.database import Database
from merlina.storage.jobs import JobRecord
from merlina.storage.uploads import UploadRecord

_INCOMING = re.compile(r"\.incoming_upload_\d{8}_\d{6}_[0-9a-f]{8}")
_UPLOAD = re.compile(r"upload_\d{8}_\d{6}_[0-9a-f]{8}")
_DELETED = re.compile(rf"\.deleted_({_UPLOAD.pattern})")
# What the database holds of an upload, beside its file: it is listed again from here if the database is lost.
_MARK = "upload.json"
_OWN_FILES = (_MARK, "rows", *(f"rows.{file_format}" for file_format in get_args(FileFormat)))
_MOST_NAMED = 10
_RECORD = TypeAdapter(UploadRecord)
_log = logging.getLogger(__name__)
_PARSE_SECONDS = 24 * 3600.0


async def accept_upload(request: Request, services: Services) -> UploadRecord:
    """Raises what receiving and parsing raise, and ClientDisconnect; then nothing is left on the disk."""
    slots = services.uploads
    async with slots.receiving(), _incoming_in_threads(services) as incoming:
        most = services.settings.max_upload_size_mb * 1024**2
        filename = await receive_file(request, incoming.file, most, slots.threads)
        return await run_while_connected(request, slots.parsing, _keep_unless_closed, services, incoming, filename)


def _keep_unless_closed(
    services: Services, incoming: _Incoming, filename: str, *, closed: threading.Event
) -> UploadRecord:
    try:
        return _keep(services, incoming, filename, closed)
    except BusyError:
        if closed.is_set():
            raise ClientDisconnect from None
        raise


def keep_rows(services: Services, rows: Iterable[Mapping[str, Any]], filename: str) -> UploadRecord:
    """Rows of our own as if someone had uploaded them as a jsonl file."""
    with _incoming(services) as incoming:
        with incoming.file.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        return _keep(services, incoming, filename)


def delete_upload(services: Services, dataset_id: str, *, force: bool) -> None:
    """Delete an upload and its file; other files in its folder stay.

    Raises NotFoundError, or OverridableError without `force` while a job needs the file to run or to resume.
    """
    folder = services.settings.uploads_dir / dataset_id
    leaving, renamed = _leaving(folder), False
    try:
        with services.database.write() as connection:
            if uploads.get(connection, dataset_id) is None:
                raise NotFoundError(f"There is no upload {dataset_id!r}; GET /dataset/uploads lists them")
            in_folder = [job for job in jobs.needing_data(connection) if _is_in(job.dataset_file, folder)]
            if in_folder and not force:
                raise OverridableError(_needed_by(dataset_id, in_folder))
            uploads.remove(connection, dataset_id)
            # Within the transaction: a job that is added at the same time finds its file either here or gone.
            with contextlib.suppress(FileNotFoundError):
                folder.rename(leaving)
                renamed = True
    except BaseException:
        # The row is still there, as on a full disk.
        if renamed:
            with contextlib.suppress(OSError):
                leaving.rename(folder)
        raise
    _complete_deletion(folder)


def _leaving(folder: Path) -> Path:
    """The folder's name from the moment that its deletion is part of a transaction until its files are removed."""
    return folder.with_name(f".deleted_{folder.name}")


def _complete_deletion(folder: Path) -> None:
    leaving = _leaving(folder)
    _remove_files(leaving)
    with contextlib.suppress(FileNotFoundError):
        leaving.rename(folder)  # files of others are in it


def recover_uploads(database: Database, uploads_dir: Path) -> None:
    """Bring files and database together after a server was killed, or the database lost, restored or replaced.

    Uploads in progress are removed, deletions completed if the database has them and undone otherwise, and uploads
    that the database does not know are listed again.
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
    found = [record for folder in folders if (record := _read_mark(folder)) is not None]
    if found:
        _log.warning("%d uploads were not in the database and are listed again from their folders", len(found))
        with database.write() as connection:
            for record in found:
                uploads.add(connection, record)


def _read_mark(folder: Path) -> UploadRecord | None:
    try:
        record = _RECORD.validate_json((folder / _MARK).read_bytes())
    except (OSError, ValidationError):
        return None
    rows = folder / f"rows.{record.file_format}"
    is_whole = record.dataset_id == folder.name and rows.is_file() and rows.stat().st_size == record.size
    return record if is_whole else None


def _is_in(file: str | None, folder: Path) -> bool:
    return file is not None and os.path.realpath(Path(file).parent) == os.path.realpath(folder)


def _needed_by(dataset_id: str, users: Sequence[JobRecord]) -> str:
    shown = ", ".join(f"{job.job_id} ({job.state})" for job in users[:_MOST_NAMED])
    more = f" and {len(users) - _MOST_NAMED} more" if len(users) > _MOST_NAMED else ""
    return (
        f"Upload {dataset_id} is needed by {shown}{more}, to run or to resume; delete those jobs first, or delete the "
        "upload all the same with force=true"
    )


def _remove_files(folder: Path) -> None:
    """Remove an upload's own files, and its folder where nothing else lies in it."""
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            if path.name in _OWN_FILES:
                path.unlink(missing_ok=True)
        folder.rmdir()


@dataclass(frozen=True)
class _Incoming:
    """An upload that is taken in: its id, its time (epoch seconds), and the file to write."""

    dataset_id: str
    now: float
    file: Path


@contextlib.asynccontextmanager
async def _incoming_in_threads(services: Services) -> AsyncIterator[_Incoming]:
    """The same for the event loop, which never waits for the disk."""
    threads = services.uploads.threads
    stack = contextlib.ExitStack()
    incoming = await run_slow(threads, stack.enter_context, _incoming(services))
    try:
        yield incoming
    finally:
        with CancelScope(shield=True):
            await run_slow(threads, stack.close)


@contextlib.contextmanager
def _incoming(services: Services) -> Iterator[_Incoming]:
    now = time.time()
    moment = datetime.fromtimestamp(now, UTC).strftime("%Y%m%d_%H%M%S")
    dataset_id = f"upload_{moment}_{secrets.token_hex(4)}"
    folder = services.settings.uploads_dir / f".incoming_{dataset_id}"
    folder.mkdir(parents=True, mode=0o700)
    try:
        yield _Incoming(dataset_id, now, folder / "rows")
    finally:
        _remove_files(folder)


def _keep(
    services: Services, incoming: _Incoming, filename: str, closed: threading.Event | None = None
) -> UploadRecord:
    parsed = services.helpers.rows.call(
        "parse_upload",
        timeout=_PARSE_SECONDS,
        closed=closed,
        file=str(incoming.file),
        name=filename,
        max_row_mb=services.settings.max_row_size_mb,
    )
    record = UploadRecord(
        dataset_id=incoming.dataset_id,
        filename=filename,
        size=incoming.file.stat().st_size,
        created_at=incoming.now,
        **parsed,
    )
    folder = services.settings.uploads_dir / incoming.dataset_id
    folder.mkdir(mode=0o700)
    try:
        sync(incoming.file)
        os.replace(incoming.file, folder / f"rows.{record.file_format}")
        write_private(folder / _MARK, _RECORD.dump_json(record, indent=2))
        for path in (folder, folder.parent):
            sync(path)
        with services.database.write() as connection:
            uploads.add(connection, record)
    except BaseException:
        _remove_files(folder)
        raise
    return record
