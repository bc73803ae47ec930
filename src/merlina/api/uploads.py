"""Taking in an uploaded data set: streamed beside, parsed as a whole, moved into place; or gone without a trace."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from merlina.api.multipart import receive_file
from merlina.api.services import Services
from merlina.data.files import detect_format, parse_all
from merlina.errors import InvalidRequestError, NotFoundError
from merlina.storage import jobs, uploads
from merlina.storage.uploads import UploadRecord


async def accept_upload(request: Request, services: Services) -> UploadRecord:
    """Raises what receiving and parsing raise; then nothing is left on the disk."""
    with _incoming(services) as incoming:
        filename = await receive_file(request, incoming.file, services.settings.max_upload_size_mb * 1024**2)
        return await run_in_threadpool(_keep, services, incoming, filename)


def keep_rows(services: Services, rows: Iterable[Mapping[str, Any]], filename: str) -> UploadRecord:
    """Rows of our own as if someone had uploaded them as a jsonl file."""
    with _incoming(services) as incoming:
        with incoming.file.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        return _keep(services, incoming, filename)


def delete_upload(services: Services, dataset_id: str) -> None:
    """Raises NotFoundError, or InvalidRequestError while a job that has not ended needs the upload."""
    folder = services.settings.uploads_dir / dataset_id
    with services.database.write() as connection:
        users = [*jobs.queued(connection), *jobs.running(connection)]
        needed_by = [job.job_id for job in users if job.dataset_file and Path(job.dataset_file).parent == folder]
        if needed_by:
            raise InvalidRequestError(f"Upload {dataset_id} is needed by {', '.join(needed_by)}; stop it first")
        if not uploads.remove(connection, dataset_id):
            raise NotFoundError(f"There is no upload {dataset_id!r}; GET /dataset/uploads lists them")
    shutil.rmtree(folder, ignore_errors=True)


def sweep_incoming(uploads_dir: Path) -> None:
    """Removes what a killed server left of uploads in progress."""
    for leftover in uploads_dir.glob(".incoming_*"):
        shutil.rmtree(leftover, ignore_errors=True)


@dataclass(frozen=True)
class _Incoming:
    """An upload that is taken in: its id, its time (epoch seconds), and the file to write."""

    dataset_id: str
    now: float
    file: Path


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
        shutil.rmtree(folder, ignore_errors=True)


def _keep(services: Services, incoming: _Incoming, filename: str) -> UploadRecord:
    file_format = detect_format(incoming.file, filename)
    record = UploadRecord(
        dataset_id=incoming.dataset_id,
        filename=filename,
        file_format=file_format,
        size=incoming.file.stat().st_size,
        total_rows=parse_all(incoming.file, file_format),
        created_at=incoming.now,
    )
    folder = services.settings.uploads_dir / incoming.dataset_id
    folder.mkdir(mode=0o700)
    try:
        os.replace(incoming.file, folder / f"rows.{file_format}")
        with services.database.write() as connection:
            uploads.add(connection, record)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return record
